// Command harp-agent publishes a private web service: it dials out to an edge and needs no open port.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// version is what harp-agent version prints; empty means what Go recorded at build time. A release sets it with
// -ldflags "-X main.version=v1.2.3".
var version string

// The exit codes beside 0, which means drained, and cli.CodeUsage.
const (
	codeRefused     = 2 // the edge does not take this agent, or another one took its name
	codeUnreachable = 3 // only with --exit-on-failure
)

func main() {
	os.Exit(cli.Main(newCommand(), "HARP_AGENT_", os.Args[1:], os.Stdout, os.Stderr))
}

const about = `harp-agent gives a private web service a public URL. It dials out to an edge, so it needs no open
port and works behind NAT and firewalls. The URL follows from the key: the same key has the same
URL on every start.

Exit codes: 0 stopped by SIGINT or SIGTERM, after open requests had up to 15 s; 1 wrong usage;
2 refused by the edge; 3 edge unreachable (with --exit-on-failure); 4 a problem with the key.
A second signal stops at once.`

const examples = `  harp-agent up 3000 --server https://tunnels.example.com
  harp-agent keygen                             make the key now; up makes it when it is missing
  harp-agent id --domain tunnels.example.com    what the URL is, without asking anybody`

// newCommand returns the command line of harp-agent.
func newCommand() *cobra.Command {
	var cfg config
	root := &cobra.Command{
		Use:     "harp-agent",
		Short:   "give a private web service a public URL",
		Long:    about,
		Example: examples,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && looksLikeTarget(args[0]) {
				return &cli.Error{Err: fmt.Errorf("unexpected argument %q", args[0]), Hint: "harp-agent up " + args[0]}
			}
			return cli.NoArgs(cmd, args)
		},
	}
	f := cli.GlobalFlags(root)
	f.Group("Key")
	f.String(&cfg.KeyFile, "key FILE", cli.DefaultKeyFile(), "private Ed25519 key: what keygen makes, OpenSSH or PKCS#8")
	f.General(&cfg.LogLevel, &cfg.LogFormat)
	root.AddCommand(newUpCommand(&cfg), newKeygenCommand(&cfg), newIDCommand(&cfg), cli.VersionCommand(version))
	return root
}

// looksLikeTarget reports whether a person who typed s meant something to publish.
func looksLikeTarget(s string) bool {
	return strings.Trim(s, ":0123456789") == "" || strings.Contains(s, "://") || strings.HasPrefix(s, "unix:")
}
