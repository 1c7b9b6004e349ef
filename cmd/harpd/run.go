package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	harptls "github.com/harp-tunnel/harp/tls"
	"github.com/harp-tunnel/harp/tunnel/server"
)

const (
	drainTimeout   = 15 * time.Second // for open requests when harpd is told to stop
	headTimeout    = 20 * time.Second // for a visitor's request head
	idleTimeout    = 2 * time.Minute  // between two requests of a visitor
	maxHeadBytes   = 256 << 10        // of a visitor's request; the edge refuses half of it already, with a page
	h2StreamWindow = 1 << 20          // bytes that an HTTP/2 visitor may send ahead on one stream
)

// listenAddrs are the addresses that an edge listens on, empty where it does not.
type listenAddrs struct{ HTTP, HTTPS, Admin string }

// run is the edge: it listens, calls started, and serves until ctx ends and open requests have had their time.
func run(ctx context.Context, cfg config, started func(listenAddrs)) error {
	return runLogged(ctx, cfg, cli.NewLogger(os.Stderr, cfg.LogLevel, cfg.LogFormat), started)
}

func runLogged(ctx context.Context, cfg config, log *slog.Logger, started func(listenAddrs)) error {
	ls, err := listen(cfg)
	if err != nil {
		return err
	}
	certs, err := openCertificates(cfg, log)
	if err != nil {
		ls.close()
		return err
	}
	defer certs.end()
	edge, err := newEdge(cfg, certs, log)
	if err != nil {
		ls.close()
		return err
	}
	certs.edge = edge
	if cfg.TLS == "files" {
		if err := cfg.checkCertificate(time.Now()); err != nil {
			log.Warn("visitors may not trust this server", "reason", err)
		}
	}
	servers := ls.serve(cfg, edge, certs, log)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for l, s := range servers {
		serve := s.Serve
		if s.Handler == edge {
			serve = func(l net.Listener) error { return edge.Serve(s, l) }
		}
		wg.Go(func() { // ends when the server shuts down
			if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		})
	}
	wg.Go(func() { edge.Run(ctx) }) // ends with ctx
	for _, run := range certs.run {
		wg.Go(func() { run(ctx) }) // ends with ctx
	}
	started(ls.addrs())
	<-ctx.Done()
	limit := drainTimeout
	if cfg.dev {
		limit = devDrain
	}
	log.Info("stopping: open requests may finish, a second signal stops at once", "within", limit)
	drain(edge, servers, ls, limit, log)
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func newEdge(cfg config, certs *certificates, log *slog.Logger) (*server.Server, error) {
	unlimited := func(n int64) int64 { // 0 means no limit to a person, and the default to the library
		if n == 0 {
			return -1
		}
		return n
	}
	rate := cfg.RateLimit
	if rate == 0 {
		rate = -1
	}
	return server.New(server.Options{
		Domain: cfg.Domain, Audiences: cfg.Audience,
		PassTLS:       cfg.TLS != "off",
		ProveHostname: certs.proveHostname, OnHostname: certs.prepareHostname,
		MaxBody: unlimited(cfg.MaxBody), RequestTimeout: cfg.RequestTimeout, PingInterval: cfg.PingInterval,
		RateLimit: rate, RateBurst: cfg.RateBurst,
		VisitorRateLimit: cfg.VisitorRateLimit, VisitorRateBurst: cfg.VisitorRateBurst,
		MaxStreams: cfg.MaxStreams, AuthorizedKeys: cfg.AuthorizedKeys, TrustedProxies: cfg.TrustedProxy,
		HSTS: cfg.HSTS, NoHostRoute: !cfg.RouteHost, RouteByPath: cfg.RoutePath, RouteByHeader: cfg.RouteHeader,
		Open: cfg.dev, Logger: log,
	})
}

// listeners are what an edge listens on; nil where it does not.
type listeners struct{ http, https, admin net.Listener }

func listen(cfg config) (ls listeners, err error) {
	defer func() {
		if err != nil {
			ls.close()
			ls = listeners{}
		}
	}()
	if ls.http, err = listenTCP("--http", cfg.HTTP); err != nil {
		return ls, err
	}
	if cfg.TLS != "off" {
		if ls.https, err = listenTCP("--https", cfg.HTTPS); err != nil {
			return ls, err
		}
	}
	if cfg.Admin != "off" {
		if ls.admin, err = listenTCP("--admin", cfg.Admin); err != nil {
			return ls, err
		}
	}
	return ls, nil
}

// listenTCP listens on the address of a flag, and says what to do if it cannot.
func listenTCP(flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		return l, nil
	}
	e := &cli.Error{Err: fmt.Errorf("%s %s: %w", flag, addr, err)}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.Hint = "another program has this port; see which with: ss -ltnp, or choose another with " + flag
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "ports below 1024 need rights: setcap cap_net_bind_service=+ep harpd, or choose another with " + flag
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		e.Hint = "this machine does not have that address; leave it out: " + flag + " :PORT"
	}
	return nil, e
}

func (ls listeners) all() []net.Listener { return []net.Listener{ls.http, ls.https, ls.admin} }

func (ls listeners) close() {
	for _, l := range ls.all() {
		if l != nil {
			_ = l.Close()
		}
	}
}

func (ls listeners) addrs() listenAddrs {
	addr := func(l net.Listener) string {
		if l == nil {
			return ""
		}
		return l.Addr().String()
	}
	return listenAddrs{HTTP: addr(ls.http), HTTPS: addr(ls.https), Admin: addr(ls.admin)}
}

// serve returns the HTTP server of each listener. From here on the HTTPS listener is one that ends TLS.
func (ls *listeners) serve(cfg config, edge *server.Server, certs *certificates, log *slog.Logger) map[net.Listener]*http.Server {
	servers := make(map[net.Listener]*http.Server)
	if ls.https == nil {
		servers[ls.http] = publicServer(edge, log)
		log.Info("serving visitors and agents", "domain", cfg.Domain, "http", ls.http.Addr())
	} else {
		servers[ls.http] = publicServer(certs.plainHTTP(ls.https.Addr()), log)
		ls.https = harptls.NewListener(ls.https, harptls.ListenerOptions{
			Config: certs.config, Route: routeTLS(cfg, edge), Logger: log,
		})
		servers[ls.https] = publicServer(edge, log)
		log.Info("serving visitors and agents", "domain", cfg.Domain, "https", ls.https.Addr(), "redirect", ls.http.Addr())
	}
	if ls.admin != nil {
		servers[ls.admin] = &http.Server{Handler: edge.Admin(), ReadHeaderTimeout: headTimeout, ErrorLog: quietLog(log)}
		log.Info("serving the operator", "admin", ls.admin.Addr())
	}
	return servers
}

// publicServer is an http.Server for visitors. It has no timeouts for bodies: they cut streams that are alive.
func publicServer(h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // OPTIONS * is the upstream's to answer
		ReadHeaderTimeout:            headTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeadBytes,
		Protocols:                    protocols,
		HTTP2:                        &http.HTTP2Config{MaxReceiveBufferPerStream: h2StreamWindow},
		ErrorLog:                     quietLog(log),
	}
}

// quietLog takes what net/http has to say of single connections: nothing that an operator should wake up for.
func quietLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

// redirectToHTTPS sends visitors of plain HTTP to the same URL at the HTTPS listener.
func redirectToHTTPS(addr net.Addr) http.Handler {
	port := ""
	if a, ok := addr.(*net.TCPAddr); ok && a.Port != 443 {
		port = fmt.Sprintf(":%d", a.Port)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
			host = host[:i]
		}
		if host == "" || !strings.HasPrefix(r.RequestURI, "/") {
			http.Error(w, "this server speaks HTTPS", http.StatusBadRequest)
			return
		}
		w.Header().Set("Location", "https://"+host+port+r.RequestURI)
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusPermanentRedirect)
	})
}

// routeTLS returns what becomes of a TLS connection for a name.
func routeTLS(cfg config, edge *server.Server) func(string) harptls.Route {
	return func(name string) harptls.Route {
		if pass, ok := edge.PassThrough(name); ok {
			return harptls.Route{Pass: pass}
		}
		switch {
		case name == cfg.Domain, strings.HasSuffix(name, "."+cfg.Domain):
			return harptls.Route{Serve: true}
		case name == "": // of who dials an address, for which no public authority gives certificates
			return harptls.Route{Serve: cfg.TLS != "auto"}
		case cfg.TLS == "internal":
			return harptls.Route{Serve: name == "localhost"}
		}
		return harptls.Route{Serve: edge.ServesHostname(name) || slices.Contains(cfg.Audience, name)}
	}
}

// drain lets open requests finish for a while and closes everything.
func drain(edge *server.Server, servers map[net.Listener]*http.Server, ls listeners, limit time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { // ends with ctx
		if err := edge.Shutdown(ctx); err != nil {
			log.Warn("some requests were cut off", "error", err)
		}
	})
	for l, s := range servers {
		if l != ls.admin {
			wg.Go(func() { // ends with ctx
				if s.Shutdown(ctx) != nil {
					_ = s.Close()
				}
			})
		}
	}
	wg.Wait()
	if https, ok := ls.https.(*harptls.Listener); ok {
		https.Shutdown(ctx) // connections whose TLS ends elsewhere
	}
	if ls.admin != nil { // last, so that /readyz can say what goes on
		_ = servers[ls.admin].Close()
	}
}
