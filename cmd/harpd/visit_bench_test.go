package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// BenchmarkVisit takes visitors through a whole edge and agent, all in this process: what it counts is the work of both.
// Visitors and upstream do as little as they can.
func BenchmarkVisit(b *testing.B) {
	for _, scheme := range []string{"http", "https"} {
		var opts []option
		if scheme == "https" {
			opts = append(opts, withTLS())
		}
		opts = append(opts, withConfig(func(c *config) { c.MaxBody = 0 }))
		tn := publish(b, plainUpstream(b), opts...)
		b.Run(scheme+"/requests", func(b *testing.B) { tn.benchRequests(b, 64) })
		b.Run(scheme+"/one", func(b *testing.B) { tn.benchRequests(b, 1) })
		b.Run(scheme+"/download", func(b *testing.B) { tn.benchTransfer(b, "GET") })
		b.Run(scheme+"/upload", func(b *testing.B) { tn.benchTransfer(b, "POST") })
	}
}

// plainUpstream answers each GET with 1 KiB, but /large with largeBody bytes, and each POST with nothing.
func plainUpstream(b *testing.B) string {
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 1024\r\n\r\n")
	answer = append(answer, bytes.Repeat([]byte("x"), 1024)...)
	large := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", largeBody)
	piece := make([]byte, 64<<10)
	return "http://" + scriptListener(b, func(c net.Conn) net.Conn { return c }, func(c net.Conn, br *bufio.Reader) {
		_ = c.SetDeadline(time.Time{}) // a benchmark may take longer than a test
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			out := answer
			switch {
			case r.Method == "POST":
				_, err = io.Copy(io.Discard, r.Body)
				out = []byte("HTTP/1.1 204 No Content\r\n\r\n")
			case r.URL.Path == "/large":
				_, err = c.Write(large)
				for left := largeBody; left > 0 && err == nil; left -= len(piece) {
					_, err = c.Write(piece)
				}
				out = nil
			}
			if _, e := c.Write(out); e != nil || err != nil {
				return
			}
		}
	})
}

const largeBody = 16 << 20 // bytes

// visitor opens a connection to the edge.
func (tn *tunnel) visitor(b *testing.B) net.Conn {
	c, err := net.Dial(tn.network, tn.Addr)
	if err == nil && tn.Roots != nil {
		c = tls.Client(c, &tls.Config{RootCAs: tn.Roots, ServerName: tn.Host, NextProtos: []string{"http/1.1"}})
	}
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// benchRequests has n visitors share the requests, each with a connection that it keeps.
func (tn *tunnel) benchRequests(b *testing.B, n int) {
	request := fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n", tn.Host)
	b.ReportAllocs()
	var wg sync.WaitGroup
	for i := range n {
		c := tn.visitor(b)
		defer c.Close()
		wg.Go(func() {
			br := bufio.NewReader(c)
			for j := i; j < b.N; j += n {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if err := skipAnswer(br, 1024); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// skipAnswer reads a head and a body of size bytes.
func skipAnswer(br *bufio.Reader, size int) error {
	for first := true; ; first = false {
		line, err := br.ReadSlice('\n')
		switch {
		case err != nil:
			return err
		case first && !bytes.HasPrefix(line, []byte("HTTP/1.1 20")):
			return fmt.Errorf("answer %q", line)
		case len(line) == 2:
			_, err := br.Discard(size)
			return err
		}
	}
}

// benchTransfer moves largeBody bytes at a time.
func (tn *tunnel) benchTransfer(b *testing.B, method string) {
	c := tn.visitor(b)
	defer c.Close()
	br := bufio.NewReaderSize(c, 64<<10)
	body := make([]byte, largeBody)
	b.SetBytes(largeBody)
	b.ReportAllocs()
	for b.Loop() {
		down := 0
		if method == "GET" {
			_, _ = fmt.Fprintf(c, "GET /large HTTP/1.1\r\nHost: %s\r\n\r\n", tn.Host)
			down = largeBody
		} else {
			_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", tn.Host, largeBody)
			_, _ = c.Write(body)
		}
		if err := skipAnswer(br, down); err != nil {
			b.Fatal(err)
		}
	}
}
