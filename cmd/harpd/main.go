// Command harpd is the edge: the public server that gives private web services their URLs.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

func main() {
	edge := func(ctx context.Context, cfg config) error { return run(ctx, cfg, func(listenAddrs) {}) }
	os.Exit(cli.Main(newCommand(edge, runDev), "HARPD_", os.Args[1:], os.Stdout, os.Stderr))
}

const about = `harpd is the public server of HARP. Agents dial in from private networks, and each gets a
hostname under --domain that follows from its key: no accounts, no database.

Exit codes: 0 stopped by SIGINT or SIGTERM, after open requests had their time; 1 anything else, 4 a key that
harpd dev cannot use.
A second signal stops at once.`

const examples = `  harpd --domain tunnels.example.com            with certificates that come by themselves
  harpd check --domain tunnels.example.com      what is missing for that
  harpd dev                                     try everything on this machine
  harpd dev 3000                                the same, publishing http://localhost:3000
  harpd --domain tunnels.example.com --tls files --cert cert.pem --cert-key key.pem
  harpd --domain tunnels.example.com --tls off --http 127.0.0.1:8080 --trusted-proxy 127.0.0.1
  harpd --config /etc/harpd.yaml --check-config`

// newCommand returns the command line of harpd; edge and dev get the checked configuration.
func newCommand(edge func(context.Context, config) error, dev func(context.Context, devConfig) error) *cobra.Command {
	var cfg config
	checkOnly := false
	root := &cobra.Command{
		Use:     "harpd --domain DOMAIN",
		Short:   "the public server of HARP",
		Long:    about,
		Example: examples,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && looksLikeTarget(args[0]) {
				return &cli.Error{Err: fmt.Errorf("unexpected argument %q", args[0]), Hint: "harpd dev " + args[0]}
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			checked, err := cfg.checked()
			if err != nil {
				return err
			}
			if !checkOnly {
				if err := checked.checkAuthorizedKeys(); err != nil {
					return err
				}
				return edge(cmd.Context(), checked)
			}
			if err := checked.checkFiles(); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "configuration ok")
			return err
		},
	}
	cfg.declare(root, &checkOnly)
	root.AddCommand(newDevCommand(dev, &cfg), newCheckCommand(), newCACommand(), cli.VersionCommand(version))
	return root
}

// noArgs is cli.NoArgs for a command with --domain, which is easily left out.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && strings.Contains(args[0], ".") {
		return &cli.Error{Err: fmt.Errorf("unexpected argument %q", args[0]), Hint: cmd.CommandPath() + " --domain " + args[0]}
	}
	return cli.NoArgs(cmd, args)
}

// newDevCommand returns the dev command; general holds the settings that all commands have.
func newDevCommand(dev func(context.Context, devConfig) error, general *config) *cobra.Command {
	var cfg devConfig
	cmd := &cobra.Command{
		Use:   "dev [TARGET]",
		Short: "the whole system in one process, to try it on this machine",
		Long: `harpd dev is an edge and an agent in one process. It publishes TARGET, or without one a built-in
demo page, and prints the URL. TARGET is a port of this machine, host:port, http://…, https://…, h2c://…
or unix:/path.sock.`,
		Example: "  harpd dev\n  harpd dev 3000\n  harpd dev 3000 --https\n  harpd dev http://192.168.1.20:8123 --http 127.0.0.1:9000",
		Args:    cli.AtMostOne("target"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.LogLevel, cfg.LogFormat = general.LogLevel, general.LogFormat
			if len(args) > 0 {
				cfg.Target = args[0]
			}
			checked, err := cfg.checked()
			if err != nil {
				return err
			}
			return dev(cmd.Context(), checked)
		},
	}
	cfg.declareDev(cmd)
	return cmd
}
