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

	"github.com/spf13/cobra"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
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
	file, err := newStateFile(cfg.StateFile, state{Label: label, Session: cfg.Session, Server: edge.String()})
	if err != nil {
		return &cli.Error{Err: fmt.Errorf("--state-file: %w", err), Hint: "give a file in a folder that this user may write to"}
	}
	opts := cfg.options(edge, key, forward, log)
	if opts.EndToEnd, err = cfg.endConfig.options(cfg.KeyFile); err != nil {
		return err
	}
	report(&opts, file, stdout)
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
	return explain(err, edge, key)
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
		return nil, &cli.Error{Err: err, Hint: "such as: harp-agent up 3000, or up http://192.168.1.20:8123; see harp-agent up --help"}
	}
	return forward, nil
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

// report makes opts print the URL to stdout, once, and keep file up to date.
func report(opts *agent.Options, file *stateFile, stdout io.Writer) {
	warn := func(err error) {
		if err != nil {
			opts.Logger.Warn("the state file is out of date", "err", err)
		}
	}
	var first sync.Once
	opts.OnRegister = func(r agent.Registration) {
		warn(file.registered(r.Hostname, r.URL)) // before the URL, so that who has read that finds the file
		first.Do(func() { fmt.Fprintln(stdout, r.URL) })
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

// explain returns err, how the agent ended, with its exit code and what to do about it; nil for nil.
func explain(err error, edge edgeURL, key identity.Key) error {
	if err == nil {
		return nil
	}
	if refused, ok := errors.AsType[*agent.RefusedError](err); ok {
		return &cli.Error{
			Err:  fmt.Errorf("refused by %s: %s (%s)", edge, refused.Reason, refused.Code),
			Hint: refusalHint(refused.Code, edge, key),
			Code: codeRefused,
		}
	}
	switch {
	case errors.Is(err, agent.ErrReplaced):
		return &cli.Error{Err: err, Hint: "to serve from both agents, start each with --mode share", Code: codeRefused}
	case errors.Is(err, agent.ErrUnreachable):
		return &cli.Error{Err: err, Hint: unreachableHint(err, edge), Code: codeUnreachable}
	}
	return err
}

func unreachableHint(err error, edge edgeURL) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "it speaks plain HTTP there: --server http://" + edge.hostPort(edge.host)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "if the edge has a certificate of its own making: --ca-file FILE"
	}
	if edge.host == "localhost" && edge.scheme == "https" {
		return "harpd dev speaks plain HTTP: --server http://" + edge.hostPort(edge.host)
	}
	return "check --server; with --wait, the default, the agent keeps trying"
}

// refusalHint returns what to do about a code of messages.RegistrationError; empty if nothing is known to help.
func refusalHint(code string, edge edgeURL, key identity.Key) string {
	switch code {
	case messages.RefuseNotAuthorized:
		return "ask the operator to add this line to the file of --authorized-keys: " + key.Public().Thumbprint().String()
	case messages.RefuseAudience:
		return "dial the server by its own domain, or ask its operator for --audience " + edge.host
	case messages.RefuseHostname:
		return "set that record where the domain's DNS is managed, then start again"
	case messages.RefuseLimit, messages.RefuseDraining:
		return "try again later"
	case messages.RefuseUnsupported:
		return "--end-to-end and --domain need a server that ends TLS itself: leave them out, or ask its operator"
	case "revoked":
		return "ask the operator why the key was taken off the file of --authorized-keys"
	case "http":
		return "is " + edge.String() + " a harpd? check --server"
	}
	return ""
}
