package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// hopPart is the yardstick: one plain Go reverse proxy.
func hopPart(f *flag.FlagSet) func(context.Context, io.Writer) error {
	to := f.String("to", "", "where requests go, as a URL")
	roots := f.String("roots", "", "file with the certificates to trust there")
	cert := f.String("cert", "", "file with the certificate to serve HTTPS with")
	key := f.String("cert-key", "", "file with its key")
	return func(ctx context.Context, out io.Writer) error {
		proxy, err := hop(*to, *roots)
		if err != nil {
			return err
		}
		return serve(ctx, out, &http.Server{Handler: proxy}, pair{*cert, *key})
	}
}

// hop returns the reverse proxy of the standard library, with as many idle connections as the load has and without
// compression, so that it does what a tunnel does.
func hop(to, roots string) (http.Handler, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, fmt.Errorf("--to: %w", err)
	}
	var trust *tls.Config
	if roots != "" {
		if trust, err = trustFile(roots); err != nil {
			return nil, err
		}
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.Transport = &http.Transport{
		MaxIdleConnsPerHost: 1024, MaxIdleConns: 4096, DisableCompression: true, TLSClientConfig: trust,
	}
	return proxy, nil
}
