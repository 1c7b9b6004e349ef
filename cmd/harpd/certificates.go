package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mholt/acmez/v3"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	harptls "github.com/harp-tunnel/harp/tls"
	"github.com/harp-tunnel/harp/tls/dns"
	"github.com/harp-tunnel/harp/tunnel/server"
)

// certificates are how an edge proves its names to visitors, of one kind of --tls.
type certificates struct {
	config *tls.Config             // for the edge's own names
	ready  func() error            // nil when visitors are served, else why not
	run    []func(context.Context) // each until ctx ends
	close  []func()

	edge   *server.Server // set before anything is served
	prover harptls.Prover
	budget *harptls.Budget
	custom *harptls.Custom // nil unless certificates of hostnames come by themselves
	log    *slog.Logger
}

// openCertificates makes what --tls asks for; nil if it is off.
func openCertificates(cfg config, log *slog.Logger) (c *certificates, err error) {
	c = &certificates{
		ready:  func() error { return nil },
		prover: harptls.Prover{Domain: cfg.Domain, Resolvers: cfg.Resolver},
		budget: harptls.NewBudget(),
		log:    log,
	}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	if cfg.TLS == "auto" || cfg.TLS == "internal" {
		release, err := lockDataDir(cfg.DataDir)
		if err != nil {
			return c, err
		}
		c.close = append(c.close, release)
	}
	switch cfg.TLS {
	case "auto":
		return c, c.openWildcard(cfg, log)
	case "internal":
		ca, err := openInternalCA(cfg.DataDir)
		if err != nil {
			return c, err
		}
		c.config = ca.TLSConfig(cfg.Domain)
	case "files":
		if c.config, err = harptls.FromFiles(cfg.Cert, cfg.CertKey, log); err != nil {
			return c, &cli.Error{Err: err, Hint: "give the PEM files of --cert and --cert-key; harpd --check-config says more"}
		}
	}
	return c, nil
}

func (c *certificates) end() {
	for i := len(c.close) - 1; i >= 0; i-- {
		c.close[i]()
	}
}

func lockDataDir(dir string) (release func(), err error) {
	release, err = harptls.LockDataDir(dir)
	switch {
	case err == nil:
		return release, nil
	case errors.Is(err, harptls.ErrDataDirInUse):
		return nil, &cli.Error{Err: err, Hint: "another harpd runs with this folder; stop it, or give each its own --data-dir"}
	}
	return nil, &cli.Error{Err: err, Hint: hintDataDir}
}

const hintDataDir = "choose a folder that can be written with --data-dir"

func openInternalCA(dataDir string) (*harptls.InternalCA, error) {
	ca, err := harptls.OpenInternalCA(dataDir)
	if err == nil {
		return ca, nil
	}
	return nil, &cli.Error{Err: err, Hint: internalCAHint(dataDir, err)}
}

// internalCAHint returns what to do about err, with which the CA in the folder could not be opened. To make another is the
// last resort: all clients would have to trust that.
func internalCAHint(dataDir string, err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "this user may not: run as the one that harpd runs as, or choose another folder with --data-dir"
	}
	if _, missing := os.Stat(filepath.Join(dataDir, "internal-ca")); missing != nil {
		return hintDataDir
	}
	return "move the folder internal-ca away for a new root, which clients then have to trust anew"
}

// openWildcard begins --tls auto: the certificates of the domain and its wildcard, by ACME.
func (c *certificates) openWildcard(cfg config, log *slog.Logger) error {
	o := harptls.WildcardOptions{
		Domain: cfg.Domain, DataDir: cfg.DataDir, Email: cfg.ACMEEmail, CA: cfg.ACMECA, Logger: log,
		Retry: cfg.acmeRetry, CheckEvery: cfg.acmeCheckEvery,
	}
	var err error
	if o.CARoots, err = cli.ACMERoots(cfg.ACMECARoot); err != nil {
		return err
	}
	switch cfg.ACMEDNS {
	case "builtin":
		if o.Solver, err = c.openDNS(cfg, log); err != nil {
			return err
		}
	case "exec":
		if err := cfg.checkProgram(); err != nil {
			return err
		}
		o.Solver = harptls.ExecSolver{Path: cfg.acmeExec, Resolver: resolverOf(cfg.Resolver)}
	case "rfc2136":
		provider, err := cfg.openRFC2136()
		if err != nil {
			return err
		}
		o.Provider, o.Resolvers = provider, []string{provider.Server}
	}
	failed := make(chan struct{}, 1)
	o.OnFailure = func(error) {
		select {
		case failed <- struct{}{}:
		default:
		}
	}
	c.run = append(c.run, func(ctx context.Context) { sayWhatIsMissing(ctx, cfg, failed, log) })
	w := harptls.NewWildcard(o)
	c.custom = harptls.NewCustom(harptls.CustomOptions{
		DataDir: cfg.DataDir, Email: cfg.ACMEEmail, CA: cfg.ACMECA, CARoots: o.CARoots, Logger: log,
		Serves: func(name string) bool { return c.edge.ServesHostname(name) },
		Prove: func(ctx context.Context, name string) error {
			label, _ := c.edge.LabelOf(name)
			return c.prover.Prove(ctx, name, label)
		},
	})
	c.close = append(c.close, c.custom.Close)
	c.config, c.ready = c.custom.TLSConfig(cfg.Domain, w.GetCertificate), w.Ready
	c.run = append(c.run, w.Run)
	c.close = append(c.close, w.Close)
	return nil
}

func (c config) openRFC2136() (*dns.RFC2136, error) {
	provider, err := dns.NewRFC2136(c.RFC2136, c.RFC2136Name, c.RFC2136Key)
	if err != nil {
		return nil, &cli.Error{Err: err, Hint: "--rfc2136-key-file is a BIND key file, as tsig-keygen prints it, for this user alone"}
	}
	return provider, nil
}

// sayEvery is how often, at most, a person is told what is missing.
const sayEvery = time.Hour

// sayWhatIsMissing logs what harpd check would print, after a certificate could not be obtained, until ctx ends.
func sayWhatIsMissing(ctx context.Context, cfg config, failed <-chan struct{}, log *slog.Logger) {
	for {
		select {
		case <-failed:
		case <-ctx.Done():
			return
		}
		findings, err := cfg.look(ctx)
		if err != nil {
			return
		}
		for _, f := range findings {
			if f.Level == harptls.LevelMiss {
				var facts []any
				if len(f.Records) > 0 {
					facts = []any{"add", f.Records}
				}
				log.Warn("missing: "+f.Text, facts...)
			}
		}
		log.Warn("more by: harpd check, with the settings of this harpd")
		select {
		case <-time.After(sayEvery):
		case <-ctx.Done():
			return
		}
	}
}

// openDNS listens for the built-in DNS server and returns what answers challenges by it.
func (c *certificates) openDNS(cfg config, log *slog.Logger) (acmez.Solver, error) {
	addrs := cfg.PublicIP
	if len(addrs) == 0 {
		if addrs = publicAddresses(); len(addrs) == 0 {
			log.Warn("this machine has no public address of its own: the built-in DNS answers challenges, but knows no address of the tunnels; give it with --public-ip")
		}
	}
	server, err := dns.New(dns.Options{
		Domain: cfg.Domain, Host: cfg.DNSHost, Alias: cfg.DNSAlias, Addresses: addrs, CAA: issuers(cfg.ACMECA), Logger: log,
	})
	if err != nil {
		return nil, &cli.Error{Err: err, Hint: "see --dns-host and --dns-alias"}
	}
	udp, tcp, err := listenDNS(cfg.DNS)
	if err != nil {
		return nil, err
	}
	log.Info("serving DNS", "zone", cfg.Domain, "dns", tcp.Addr(), "addresses", addrs)
	c.run = append(c.run, func(ctx context.Context) {
		if err := server.Serve(ctx, []net.PacketConn{udp}, []net.Listener{tcp}); err != nil {
			log.Error("the built-in DNS has ended", "reason", err)
		}
	})
	c.close = append(c.close, func() { _, _ = udp.Close(), tcp.Close() })
	return harptls.TXTSolver{Add: server.AddTXT, Remove: server.RemoveTXT, Name: cfg.DNSAlias}, nil
}

func listenDNS(addr string) (net.PacketConn, net.Listener, error) {
	tcp, err := listenTCP("--dns", addr)
	if err != nil {
		var e *cli.Error
		if errors.As(err, &e) && errors.Is(err, syscall.EADDRINUSE) {
			e.Hint = "often systemd-resolved has port 53 of loopback alone: give the public address, --dns 203.0.113.7:53"
		}
		return nil, nil, err
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		_ = tcp.Close()
		return nil, nil, &cli.Error{Err: fmt.Errorf("--dns %s: %w", addr, err), Hint: "another program has this port for UDP; see which with: ss -lnup"}
	}
	return udp, tcp, nil
}

// issuers are the names by which CAA records allow an authority; nil if they are not known, which allows all.
func issuers(directory string) []string {
	if strings.HasSuffix(directory, ".api.letsencrypt.org/directory") {
		return []string{"letsencrypt.org"}
	}
	return nil
}

// resolverOf asks the given servers, host:port, in turn; the system's if there are none.
func resolverOf(servers []string) *net.Resolver {
	if len(servers) == 0 {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		for _, s := range servers {
			if conn, err = new(net.Dialer).DialContext(ctx, network, s); err == nil {
				break
			}
		}
		return conn, err
	}}
}

// publicAddresses are the addresses of this machine that the internet can reach, as far as its interfaces say.
func publicAddresses() (out []netip.Addr) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			if addr := p.Addr().Unmap(); addr.IsGlobalUnicast() && !addr.IsPrivate() {
				out = append(out, addr)
			}
		}
	}
	return out
}

// proveHostname is what the edge asks at each registration of a hostname.
func (c *certificates) proveHostname(ctx context.Context, thumbprint, label, hostname string) error {
	if err := c.prover.Prove(ctx, hostname, label); err != nil {
		return err
	}
	if c.custom != nil && c.custom.Holds(hostname) {
		return nil // costs the authority nothing, and is no news after a restart
	}
	return c.budget.Spend(thumbprint, hostname)
}

// prepareHostname gets the certificate of a hostname before its first visitor comes, or says that there is none.
func (c *certificates) prepareHostname(hostname string) {
	switch {
	case c.custom != nil:
		c.custom.Prepare(hostname)
	case c.config != nil && !c.covers(hostname):
		c.log.Warn("visitors cannot reach a hostname by HTTPS: this server has no certificate for it", "hostname", hostname,
			"hint", "use --tls auto, or --tls files with a certificate that names it, too")
	}
}

// covers reports whether there is a certificate for a hostname.
func (c *certificates) covers(hostname string) bool {
	cert, err := c.config.GetCertificate(&tls.ClientHelloInfo{ServerName: hostname})
	return err == nil && cert != nil && cert.Leaf != nil && cert.Leaf.VerifyHostname(hostname) == nil
}

// hostOf is the name that a request is for.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// plainHTTP answers on port 80 when TLS is on: HTTP-01 validations of hostnames; for the rest it sends visitors to HTTPS, or says why that does not work yet.
func (c *certificates) plainHTTP(https net.Addr) http.Handler {
	redirect := redirectToHTTPS(https)
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, passed := c.edge.PassThrough(hostOf(r)) // its certificate is not this server's
		if err := c.ready(); err != nil && !passed {
			w.Header().Set("Retry-After", "60")
			http.Error(w, "This server has no certificate yet.\n"+err.Error(), http.StatusServiceUnavailable)
			return
		}
		redirect.ServeHTTP(w, r)
	})
	if c.custom == nil {
		return answer
	}
	return c.custom.HTTPHandler(answer)
}
