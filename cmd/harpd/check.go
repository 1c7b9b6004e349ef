package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	harptls "github.com/harp-tunnel/harp/tls"
)

// newCheckCommand returns the command that says what a server with --tls auto still needs.
func newCheckCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "check --domain DOMAIN",
		Short: "what is right and what is missing for certificates",
		Long: `harpd check looks at DNS, ports, CAA records, the certificate authority, the clock and the data folder,
and says in one line each what is right, what may be wrong (warn) and what is missing (MISS), with the
DNS records to add. Give it the settings that harpd gets. Exit code 1 if anything is missing.`,
		Example: "  harpd check --domain tunnels.example.com",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			checked, err := cfg.checked()
			if err != nil {
				return err
			}
			if checked.TLS != "auto" {
				return &cli.Error{
					Err:  fmt.Errorf("there is nothing to check with --tls %s", checked.TLS),
					Hint: "harpd --check-config looks at settings and files",
				}
			}
			findings, err := checked.look(cmd.Context())
			if err != nil {
				return err
			}
			if printFindings(cmd.OutOrStdout(), findings) > 0 {
				return &cli.Error{Err: errors.New("something is missing"), Hint: "add what is said above, wait until the DNS has it, and check again"}
			}
			return nil
		},
	}
	cfg.declareEdge(cli.LocalFlags(cmd))
	return cmd
}

// look makes the check of a checked c.
func (c config) look(ctx context.Context) ([]harptls.Finding, error) {
	roots, err := cli.ACMERoots(c.ACMECARoot)
	if err != nil {
		return nil, err
	}
	addrs := c.PublicIP
	if len(addrs) == 0 {
		addrs = publicAddresses()
	}
	o := harptls.CheckOptions{
		Domain: c.Domain, Host: c.DNSHost, Alias: c.DNSAlias, Addresses: addrs, Builtin: c.ACMEDNS == "builtin",
		Resolvers: c.Resolver, DataDir: c.DataDir, CA: c.ACMECA, CARoots: roots, Issuers: issuers(c.ACMECA),
		HTTP: portOf(c.HTTP), HTTPS: portOf(c.HTTPS), DNSPort: c.checkDNSPort,
	}
	if o.Builtin {
		o.DNS = portOf(c.DNS)
	}
	findings := harptls.Check(ctx, o)
	if err := c.checkProgram(); err != nil {
		findings = append(findings, harptls.Finding{Level: harptls.LevelMiss, Text: err.Error()})
	}
	return findings, nil
}

// portOf is the port of an address to listen on, which has been checked.
func portOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return n
}

// printFindings writes one line each, with the records to add below it, and returns how many are missing.
func printFindings(w io.Writer, findings []harptls.Finding) (missing int) {
	for _, f := range findings {
		if f.Level == harptls.LevelMiss {
			missing++
		}
		fmt.Fprintf(w, "%-5s %s\n", f.Level, f.Text)
		for _, r := range f.Records {
			fmt.Fprintf(w, "          %s\n", r)
		}
	}
	return missing
}
