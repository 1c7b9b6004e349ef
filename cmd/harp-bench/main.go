// Command harp-bench measures what HARP costs beside plain Go reverse proxies, on one machine, in one run.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

func main() {
	if len(os.Args) > 1 {
		if p := partNamed(os.Args[1]); p != nil {
			os.Exit(p.main(os.Args[2:], os.Stdout, os.Stderr))
		}
	}
	os.Exit(cli.Main(newCommand(), "HARP_BENCH_", os.Args[1:], os.Stdout, os.Stderr))
}

const about = `harp-bench starts harpd, harp-agent, a web service and plain Go reverse proxies as processes of this
machine and prints a table: what HARP costs, what the yardstick costs, and the ratio, which is what
counts. Yardstick and HARP are measured in turns, and every figure is the median of the rounds, because
machines are noisy. Other work on the machine spoils the figures all the same.

The programs are built from this checkout, unless --bin names a folder that has harpd and harp-agent.
It runs on Linux only: CPU time and memory come from /proc. Exit codes: 0 measured, whatever came
out; 1 anything else.`

const examples = `  harp-bench                              the whole table, about 10 minutes
  harp-bench --only requests,latency      some rows of it
  harp-bench --only 'link-*'              idle links: memory, and what they add to a request
  harp-bench --tls                        with visitors over https and the link over wss
  harp-bench --smoke                      whether everything runs; the figures mean nothing`

func newCommand() *cobra.Command {
	var s settings
	root := &cobra.Command{
		Use:     "harp-bench",
		Short:   "measure what HARP costs",
		Long:    about,
		Example: examples,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.checkGiven(cmd.Flags().Changed); err != nil {
				return err
			}
			p, err := s.plan()
			if err != nil {
				return err
			}
			ctx, stop := hangup(cmd.Context())
			defer stop()
			return measureAll(ctx, p, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	s.declare(cli.LocalFlags(root))
	return root
}

// hangup returns a context that also ends when the terminal goes away, unless nohup has this ignored: a private key must
// not stay in the scratch folder.
func hangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}
