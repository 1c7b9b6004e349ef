package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/identity"
)

// domain is what harpd serves; nobody looks it up.
const domain = "web.test"

// A subject is something that stands between visitors and the upstream.
type subject struct {
	target
	name   string
	procs  []*process // whose CPU time counts, the visitors' end first
	beside []*process // others that it needs
	admin  string     // address of harpd's admin listener; empty if it has none
}

// stop ends the processes of s.
func (s *subject) stop() {
	for _, p := range append(s.procs, s.beside...) {
		p.stop()
	}
}

// cpu returns the CPU time that all processes of s have used.
func (s *subject) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, p := range s.procs {
		t, err := p.cpu()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// check asks once for the small page.
func (s *subject) check(ctx context.Context) error {
	v, err := s.visit(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	defer v.close()
	if err := v.page(s.request("GET", pagePath)); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// startHops starts n plain Go proxies one behind the other.
func (b *bench) startHops(ctx context.Context, n int) (*subject, error) {
	s := &subject{name: fmt.Sprintf("%d Go hops", n), target: target{addr: b.upstream, host: domain, roots: b.files.cert}}
	to := "http://" + b.upstream
	for range n {
		p, err := b.startSelf(ctx, "hop", "--to", to, "--cert", b.files.cert, "--cert-key", b.files.key, "--roots", b.files.cert)
		if err != nil {
			s.stop()
			return nil, err
		}
		s.procs = append([]*process{p.process}, s.procs...)
		s.addr, to = p.addr, b.url(p.addr)
	}
	if err := s.check(ctx); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// url is how addr is reached, with TLS or without.
func (b *bench) url(addr string) string {
	if b.files.cert != "" {
		return "https://" + addr
	}
	return "http://" + addr
}

// harpOptions say how HARP is started.
type harpOptions struct {
	admin     bool          // with harpd's admin listener
	roundTrip time.Duration // between agent and edge; zero means none beside the machine's own
}

// startHARP starts an edge and an agent. harpd comes first in procs.
func (b *bench) startHARP(ctx context.Context, o harpOptions) (s *subject, err error) {
	s = &subject{name: "HARP", target: target{roots: b.files.cert}}
	defer func() {
		if err != nil {
			s.stop()
			s = nil
		}
	}()
	key, err := identity.Generate()
	if err != nil {
		return s, err
	}
	keyFile := filepath.Join(b.dir, key.Public().String()+".jwk")
	if err := identity.WriteKeyFile(keyFile, key, false); err != nil {
		return s, err
	}
	s.host = key.Public().Thumbprint().Label("") + "." + domain
	if err := b.startEdge(ctx, s, o); err != nil {
		return s, err
	}
	edge := s.addr
	if o.roundTrip > 0 {
		pipe, err := b.startDelay(ctx, s.addr, o.roundTrip)
		if err != nil {
			return s, err
		}
		s.beside = append(s.beside, pipe.process)
		edge = pipe.addr
	}
	agent, err := start(ctx, filepath.Join(b.bin, "harp-agent"), "up", "http://"+b.upstream, "--server", b.url(edge),
		"--ca-file", b.files.cert, "--key", keyFile, "--inspect", "off", "--log-level", "warn")
	if err != nil {
		return s, err
	}
	s.procs = append(s.procs, agent)
	url, err := agent.line(ctx, patience)
	if err != nil {
		return s, err
	}
	if !strings.Contains(url, s.host) {
		return s, fmt.Errorf("the agent got the URL %s, not one of %s", url, s.host)
	}
	return s, s.check(ctx)
}

// startEdge starts harpd and sets the address of s.
func (b *bench) startEdge(ctx context.Context, s *subject, o harpOptions) error {
	plain, err := freeAddr()
	if err != nil {
		return err
	}
	args := []string{"--domain", domain, "--http", plain, "--data-dir", filepath.Join(b.dir, "harpd"),
		"--max-body", "0", "--rate-limit", "0", "--log-level", "warn"}
	s.addr = plain
	if b.plan.tls {
		if s.addr, err = freeAddr(); err != nil {
			return err
		}
		args = append(args, "--tls", "files", "--https", s.addr, "--cert", b.files.cert, "--cert-key", b.files.key)
	} else {
		args = append(args, "--tls", "off")
	}
	s.admin = "off"
	if o.admin {
		if s.admin, err = freeAddr(); err != nil {
			return err
		}
	}
	edge, err := start(ctx, filepath.Join(b.bin, "harpd"), append(args, "--admin", s.admin)...)
	if err != nil {
		return err
	}
	s.procs = append(s.procs, edge)
	return edge.awaitListening(ctx, s.addr)
}

// awaitListening waits until the process takes connections at addr.
func (p *process) awaitListening(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s does not listen on %s", p.name, addr))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return p.failure()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// freeAddr returns an address of this machine that nobody listens on: harpd says its own only in its log.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
