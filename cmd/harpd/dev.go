package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// devSession is the session of the built-in agent: a name of its own, which a person's agent with the same key at the same
// edge does not take over.
const devSession = "harpd-dev"

// devDrain is how long harpd dev waits for open requests at its end: a person waits for it.
const devDrain = time.Second

// runDev is an edge and an agent in one process. It prints the URL, alone, to stdout.
func runDev(ctx context.Context, cfg devConfig) error { return dev(ctx, cfg, os.Stdout) }

func dev(ctx context.Context, cfg devConfig, stdout io.Writer) error {
	log := cli.NewLogger(os.Stderr, cfg.LogLevel, cfg.LogFormat)
	handler := demoHandler()
	if cfg.Target != "" {
		f, err := agent.Forward(cfg.Target, agent.ForwardOptions{Logger: log})
		if err != nil {
			return &cli.Error{Err: err, Hint: "harpd dev 3000"}
		}
		defer f.Close()
		handler = f
	}
	key, err := cli.OpenKey(cfg.KeyFile, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, listen := range []string{cfg.HTTP, cfg.HTTPS} {
		if listen == "off" {
			continue
		}
		addr, err := dialable(listen)
		if err != nil {
			return err
		}
		cfg.Audience = append(cfg.Audience, addr)
	}
	cfg.dev = true
	finished := make(chan struct{})
	started := false
	err = runLogged(ctx, cfg.config, log, func(at listenAddrs) {
		started = true
		go func() { // ends with ctx
			defer close(finished)
			cancel(devAgent(ctx, cfg, at, key, handler, log, stdout))
		}()
	})
	cancel(nil)
	if started {
		<-finished
	}
	return err
}

// devAgent runs the agent of harpd dev.
func devAgent(ctx context.Context, cfg devConfig, at listenAddrs, key identity.Key, h http.Handler, log *slog.Logger, stdout io.Writer) error {
	scheme, addr := "http", at.HTTP
	var trust func() (*tls.Config, error)
	if at.HTTPS != "" {
		scheme, addr = "https", at.HTTPS
		trust = func() (*tls.Config, error) { return trustInternal(cfg.DataDir) }
	}
	host, err := dialable(addr)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(addr) // dialable has done the same
	printed := false
	a, err := agent.New(agent.Options{
		Server: scheme + "://" + net.JoinHostPort(host, port), Key: key,
		Services:     []agent.Service{{Session: devSession, Handler: h}},
		TLSConfig:    trust,
		Logger:       log,
		DrainTimeout: devDrain,
		OnRegister: func(r agent.Registration) {
			if !printed {
				printed = true
				if at.HTTPS != "" {
					ca := "harpd ca"
					if cfg.DataDir != defaultDataDir() {
						ca += " --data-dir " + cfg.DataDir
					}
					log.Info("visitors have to trust the CA of this machine", "hint", ca+" > harp-root.pem; curl --cacert harp-root.pem "+r.URL)
				}
				fmt.Fprintln(stdout, r.URL)
			}
		},
	})
	if err != nil {
		return err
	}
	if err = a.Run(ctx); errors.Is(err, agent.ErrReplaced) {
		return &cli.Error{Err: err, Hint: "give the other agent a --session that is not " + devSession}
	}
	return err
}

// trustInternal trusts the CA of --tls internal and nothing else.
func trustInternal(dataDir string) (*tls.Config, error) {
	ca, err := openInternalCA(dataDir)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	return &tls.Config{RootCAs: roots}, nil
}

// dialable is the host by which the agent reaches a listener on addr.
func dialable(addr string) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("--http: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "127.0.0.1", nil
	}
	return host, nil
}
