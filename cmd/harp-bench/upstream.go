package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

const (
	pageSize = 1 << 10 // bytes of the answer to a small request

	pagePath = "/"
	bulkPath = "/bulk/" // and a number of MiB
	sinkPath = "/sink"
)

// upstreamPart is the web service at the far end of everything.
func upstreamPart(*flag.FlagSet) func(context.Context, io.Writer) error {
	return func(ctx context.Context, out io.Writer) error {
		return serve(ctx, out, &http.Server{Handler: upstream()}, pair{})
	}
}

// upstream answers with a small page, with as many MiB as the path says, or with how many bytes it was sent.
func upstream() http.Handler {
	page := bytes.Repeat([]byte("0123456789abcdef"), pageSize/16)
	block := make([]byte, 256<<10)
	mux := http.NewServeMux()
	mux.HandleFunc(pagePath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(page) // fails when the visitor has gone
	})
	mux.HandleFunc("GET "+bulkPath+"{mib}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseUint(r.PathValue("mib"), 10, 20)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Length", strconv.FormatUint(n<<20, 10))
		for range n << 20 / uint64(len(block)) {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("POST "+sinkPath, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, n)
	})
	return mux
}

// serve serves on a port of this machine, prints its address, and returns nil when ctx ends. With a pair of files it
// serves HTTPS.
func serve(ctx context.Context, out io.Writer, s *http.Server, files pair) error {
	l, err := listen(out)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if files.cert != "" {
		err = s.ServeTLS(l, files.cert, files.key)
	} else {
		err = s.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// listen listens on a port of this machine, and prints its address for who started the process.
func listen(out io.Writer) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}
