package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

func newUpCommand(shared *config) *cobra.Command {
	var cfg upConfig
	cmd := &cobra.Command{
		Use:   "up [TARGET]",
		Short: "publish a web service",
		Long: `harp-agent up publishes TARGET: a port of this machine, host:port, http://…, https://…, h2c://… or
unix:/path.sock; without one http://localhost:8080. The public URL alone is the first line on
stdout, everything else goes to stderr. If there is no key yet, up makes one.`,
		Example: `  harp-agent up 3000 --server https://tunnels.example.com
  harp-agent up unix:/run/app.sock --session api
  harp-agent up 11434 --header-add 'Authorization: @/etc/harp/token' --host-header rewrite`,
		Args: cli.AtMostOne("target"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.KeyFile, cfg.LogLevel, cfg.LogFormat = shared.KeyFile, shared.LogLevel, shared.LogFormat
			if len(args) > 0 {
				cfg.Target = args[0]
			}
			return run(cmd.Context(), cfg, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cfg.declare(cli.LocalFlags(cmd))
	return cmd
}

// run publishes until ctx ends and open requests have had their time; the error is nil then. It prints the URL to
// stdout once, at the first registration.
func run(ctx context.Context, cfg upConfig, stdout, stderr io.Writer) error {
	log := cli.NewLogger(stderr, cfg.LogLevel, cfg.LogFormat)
	edge, err := cfg.checked()
	if err != nil {
		return err
	}
	if cfg.Domains, err = parseDomains(cfg.Domains); err != nil {
		return err
	}
	forward, err := cfg.forwarder(log)
	if err != nil {
		return err
	}
	defer forward.Close()
	key, err := cli.OpenKey(cfg.KeyFile, log)
	if err != nil {
		return err
	}
	label := key.Public().Thumbprint().Label(cfg.Session)
	file, err := newStateFile(cfg.StateFile, state{Label: label, Session: cfg.Session, Server: edge.String(), Domains: cfg.Domains})
	if err != nil {
		return &cli.Error{Err: fmt.Errorf("--state-file: %w", err), Hint: "give a file in a folder that this user may write to"}
	}
	opts := cfg.options(edge, key, forward, log)
	if opts.EndToEnd, err = cfg.endConfig.options(cfg.KeyFile); err != nil {
		return err
	}
	advice := adviser{edge: edge, key: key, endToEnd: cfg.EndToEnd}
	opts.Hint = advice.noLink
	report(&opts, cfg, file, stdout)
	a, err := agent.New(opts)
	if err != nil {
		return err
	}
	if cfg.Inspect != "off" {
		log.Warn("--inspect is not in this version and has no effect")
	}
	err = a.Run(ctx)
	if removeErr := file.remove(); removeErr != nil {
		log.Warn("the state file is out of date", "err", removeErr)
	}
	return advice.explain(err)
}

// checked returns where the edge is, or the first thing that is wrong with the settings. The forwarder checks its own.
func (c upConfig) checked() (edgeURL, error) {
	edge, err := c.edge("")
	if err != nil {
		return edge, err
	}
	if !edge.known() {
		return edge, &cli.Error{Err: errors.New("--server is missing"), Hint: "harp-agent up --server https://tunnels.example.com"}
	}
	if err := checkName(c.Session, c.Path); err != nil {
		return edge, err
	}
	if c.EndToEnd && c.Path != "" {
		return edge, &cli.Error{Err: errors.New("--path does not go with --end-to-end: the edge cannot see paths"), Hint: "leave one of them out"}
	}
	if c.StripPath && c.Path == "" {
		return edge, &cli.Error{Err: errors.New("--strip-path has nothing to strip"), Hint: "add --path /PREFIX"}
	}
	if c.CAFile != "" {
		if _, err := trust(c.CAFile); err != nil {
			return edge, &cli.Error{Err: fmt.Errorf("--ca-file: %w", err), Hint: "give the PEM file with the certificate of the edge or its issuer"}
		}
	}
	return edge, nil
}

// forwarder returns the handler for cfg.Target; the caller closes it.
func (c upConfig) forwarder(log *slog.Logger) (*agent.Forwarder, error) {
	fields, err := parseHeaders(c.HeaderAdd)
	if err != nil {
		return nil, err
	}
	opts := agent.ForwardOptions{
		HostHeader:         c.HostHeader,
		HeaderAdd:          fields,
		InsecureSkipVerify: c.InsecureUpstream,
		Logger:             log,
	}
	if c.StripPath {
		opts.StripPath = c.Path
	}
	forward, err := agent.Forward(c.Target, opts)
	if err != nil {
		return nil, &cli.Error{Err: err, Hint: c.forwardHint()}
	}
	return forward, nil
}

// forwardHint returns what to do if there can be no forwarder: it tries which of the settings is to blame.
func (c upConfig) forwardHint() string {
	for _, try := range []struct {
		target string
		opts   agent.ForwardOptions
		hint   string
	}{
		{c.Target, agent.ForwardOptions{}, "such as: harp-agent up 3000, or up http://192.168.1.20:8123; see harp-agent up --help"},
		{"", agent.ForwardOptions{HostHeader: c.HostHeader}, "write --host-header rewrite, or a name such as --host-header app.internal"},
	} {
		f, err := agent.Forward(try.target, try.opts)
		if err != nil {
			return try.hint
		}
		f.Close()
	}
	return "see --header-add in harp-agent up --help"
}

func (c upConfig) options(edge edgeURL, key identity.Key, forward *agent.Forwarder, log *slog.Logger) agent.Options {
	opts := agent.Options{
		Server:        edge.String(),
		Key:           key,
		Services:      []agent.Service{{Session: c.Session, Path: c.Path, Mode: c.Mode, Hostnames: c.Domains, Handler: forward}},
		ExitOnFailure: c.ExitOnFailure || !c.Wait,
		Logger:        log,
	}
	if c.CAFile != "" {
		opts.TLSConfig = func() (*tls.Config, error) { return trust(c.CAFile) }
	}
	return opts
}

// report makes opts print the URL to stdout, once, keep file up to date, and log what visitors will not like.
func report(opts *agent.Options, cfg upConfig, file *stateFile, stdout io.Writer) {
	warn := func(err error) {
		if err != nil {
			opts.Logger.Warn("the state file is out of date", "err", err)
		}
	}
	var first sync.Once
	opts.OnRegister = func(r agent.Registration) {
		warn(file.registered(r.Hostname, r.URL)) // before the URL, so that who has read that finds the file
		first.Do(func() {
			fmt.Fprintln(stdout, r.URL)
			names := cfg.Domains
			if len(names) == 0 {
				names = []string{r.Hostname}
			}
			for _, name := range names {
				if err := cfg.distrusted(name, time.Now()); err != nil {
					opts.Logger.Warn("visitors will not trust this service", "reason", err, "hint", "give --tls-cert one for "+name+", or leave it out: certificates then come by themselves")
				}
			}
		})
	}
	opts.OnDisconnect = func(error) { warn(file.disconnected()) }
}

// trust returns a TLS configuration that trusts the certificates in the file, beside the system's.
func trust(path string) (*tls.Config, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil { // Go finds none on this system
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", path)
	}
	return &tls.Config{RootCAs: roots}, nil
}
