package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// longPath starts a delay to a server that h serves each connection of, and connects.
func longPath(t *testing.T, d delay, h func(*net.TCPConn)) *net.TCPConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h(c.(*net.TCPConn))
			c.Close()
		}
	}()
	d.to = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- d.serve(ctx, w) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	addr, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// TestDelay: everything arrives, in order, with the end, and not before its time.
func TestDelay(t *testing.T) {
	const half, size = 30 * time.Millisecond, 300 << 10
	c := longPath(t, delay{half: half, window: 64 << 10}, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * i >> 8)
	}
	begin := time.Now()
	go func() { // ends when all is sent
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	one := make([]byte, 1)
	if _, err := io.ReadFull(c, one); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 2*half {
		t.Errorf("the first byte came back after %v, want a round trip of %v", took, 2*half)
	}
	rest, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(one) + string(rest); got != string(sent) {
		t.Errorf("%d bytes came back, not the %d that were sent", len(got), size)
	}
	// Two parcels at most are under way in 60 ms, and there are five.
	if took := time.Since(begin); took < 4*half {
		t.Errorf("%d bytes took %v, want that the window holds them back", size, took)
	}
}

// TestDelayBreaks: a connection that breaks on one side breaks on the other.
func TestDelayBreaks(t *testing.T) {
	c := longPath(t, delay{half: time.Millisecond, window: 64 << 10}, func(c *net.TCPConn) { _ = c.SetLinger(0) })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := c.Write(make([]byte, 1<<10)); err != nil {
			return
		}
	}
}
