package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// upgrades opens an upgraded connection through a pair of sessions, and returns both ends of it.
func upgrades(t *testing.T) (visitor, service *UpgradedConn, p *pair) {
	t.Helper()
	hijacked := make(chan *UpgradedConn, 1)
	p = newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "own")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
		}
		hijacked <- c.(*UpgradedConn)
	}))
	res := p.do(request("GET", "/", nil, "Connection: Upgrade", "Upgrade: own", "Sec-Websocket-Key: x"))
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "own" || res.Header.Get("Connection") != "Upgrade" {
		t.Fatalf("answer %d with %v, want 101 with all of its fields", res.StatusCode, res.Header)
	}
	return res.Body.(*UpgradedConn), <-hijacked, p
}

// bothWays runs a test of one end of an upgraded connection with either end.
func bothWays(t *testing.T, test func(t *testing.T, a, b *UpgradedConn)) {
	t.Run("from the visitor", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			visitor, service, p := upgrades(t)
			test(t, visitor, service)
			wantOver(t, p, visitor, service)
		})
	})
	t.Run("from the service", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			visitor, service, p := upgrades(t)
			test(t, service, visitor)
			wantOver(t, p, visitor, service)
		})
	})
}

// wantOver closes what a test left open, and wants no stream to be left.
func wantOver(t *testing.T, p *pair, ends ...*UpgradedConn) {
	t.Helper()
	for _, c := range ends {
		_ = c.Close()
	}
	synctest.Wait()
	if a, b := p.edge.Streams(), p.agent.Streams(); a != 0 || b != 0 {
		t.Errorf("%d streams are left at the edge and %d at the agent", a, b)
	}
}

func TestUpgradedBytesBothWays(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		sent := pattern(3<<20, 5)
		go func() {
			for p := range slices.Chunk(sent, 50_001) {
				if n, err := a.Write(p); n != len(p) || err != nil {
					t.Errorf("write: %d, %v", n, err)
				}
			}
			_ = a.CloseWrite()
		}()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d others of %d bytes arrived, %v", len(got), len(sent), err)
		}
		if _, err := b.Write([]byte("after the half-close")); err != nil {
			t.Errorf("the other direction: %v", err)
		}
		_ = b.CloseWrite()
		if got, err := io.ReadAll(a); string(got) != "after the half-close" || err != nil {
			t.Errorf("the other direction brought %q, %v", got, err)
		}
	})
}

// TestUpgradedClose wants what was written to arrive, with a proper end behind it.
func TestUpgradedClose(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		_, _ = a.Write([]byte("last words"))
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
		if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
			t.Errorf("peer got %q and %v, want the last words and the end", got, err)
		}
		synctest.Wait()
		var cancelled *CancelError
		if _, err := b.Write([]byte("x")); !errors.As(err, &cancelled) || cancelled.Code != messages.CancelEnough {
			t.Errorf("peer's write: %v, want a cancel that says enough", err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v, want %v", err, net.ErrClosed)
		}
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("write after close succeeded")
		}
	})
}

// TestUpgradedReset wants what was written to arrive, and no proper end behind it.
func TestUpgradedReset(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		_, _ = a.Write([]byte("last words"))
		_ = a.Reset()
		_ = a.Reset()
		_ = a.Close()
		got, err := io.ReadAll(b)
		var cancelled *CancelError
		if string(got) != "last words" || !errors.As(err, &cancelled) || cancelled.Code != messages.CancelAborted {
			t.Errorf("peer got %q and %v, want the last words and a reset", got, err)
		}
		if _, err := b.Write([]byte("x")); !errors.As(err, &cancelled) {
			t.Errorf("peer's write: %v, want a reset", err)
		}
		if _, err := a.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read after reset: %v, want an error", err)
		}
	})
}

// TestCloseFreesReadersAndWriters closes a connection in which others wait, as net.Conn promises. It is not in a bubble,
// where a goroutine that waits for a mutex counts as busy.
func TestCloseFreesReadersAndWriters(t *testing.T) {
	for name, end := range map[string]func(c *UpgradedConn) error{"close": (*UpgradedConn).Close, "reset": (*UpgradedConn).Reset} {
		for _, fromVisitor := range []bool{true, false} {
			a, b, _ := upgrades(t)
			if !fromVisitor {
				a, b = b, a
			}
			errs := make(chan error, 4)
			for range 2 {
				go func() {
					_, err := a.Read(make([]byte, 1))
					errs <- err
				}()
				go func() {
					_, err := a.Write(make([]byte, 1<<20))
					errs <- err
				}()
			}
			time.Sleep(20 * time.Millisecond)
			_ = end(a)
			for range 4 {
				if err := <-errs; err == nil || err == io.EOF {
					t.Errorf("%s: a waiting call returned %v, want an error", name, err)
				}
			}
			if n, err := io.Copy(io.Discard, b); err == nil {
				t.Errorf("%s: the peer got %d bytes and then a proper end, yet a write was cut", name, n)
			}
			_ = b.Close()
		}
	}
}

// TestConcurrentClose calls everything at once.
func TestConcurrentClose(t *testing.T) {
	for range 20 {
		bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
			var wg sync.WaitGroup
			for _, c := range []*UpgradedConn{a, b} {
				for range 3 {
					wg.Go(func() { _ = c.Close() })
					wg.Go(func() { _ = c.CloseWrite() })
					wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
					wg.Go(func() { _, _ = c.Write(make([]byte, 300_000)) })
					wg.Go(func() { _ = c.SetDeadline(time.Now().Add(time.Second)) })
				}
			}
			wg.Wait()
		})
	}
}

// TestWritesDoNotMix has two goroutines write at once.
func TestWritesDoNotMix(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		const size = 400_000
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if n, err := a.Write(bytes.Repeat([]byte{'a' + byte(i)}, size)); n != size || err != nil {
					t.Errorf("write: %d, %v", n, err)
				}
			})
		}
		go func() {
			wg.Wait()
			_ = a.CloseWrite()
		}()
		got, err := io.ReadAll(b)
		if len(got) != 4*size || err != nil {
			t.Fatalf("%d bytes arrived, %v", len(got), err)
		}
		for p := range slices.Chunk(got, size) {
			if n := bytes.Count(p, p[:1]); n != size {
				t.Fatalf("a write of %d bytes arrived with others in between", size)
			}
		}
	})
}

func TestReadDeadline(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		start := time.Now()
		reads := func(why string, after time.Duration, want error) {
			t.Helper()
			_, err := a.Read(make([]byte, 10))
			if d := time.Since(start); !errors.Is(err, want) || d != after {
				t.Errorf("%s: read returned %v after %v, want %v after %v", why, err, d, want, after)
			}
		}
		_ = a.SetReadDeadline(start.Add(time.Second))
		reads("deadline in a second", time.Second, os.ErrDeadlineExceeded)
		reads("it stays passed", time.Second, os.ErrDeadlineExceeded)
		_, _ = b.Write([]byte("x"))
		synctest.Wait()
		reads("even if there is something", time.Second, os.ErrDeadlineExceeded)
		_ = a.SetReadDeadline(time.Time{})
		reads("no deadline", time.Second, nil)
		time.AfterFunc(time.Second, func() { _ = a.SetReadDeadline(time.Now()) })
		reads("a deadline that comes while a read waits", 2*time.Second, os.ErrDeadlineExceeded)
		_ = a.SetReadDeadline(start.Add(3 * time.Second))
		time.AfterFunc(500*time.Millisecond, func() { _ = a.SetReadDeadline(start.Add(4 * time.Second)) })
		reads("a deadline that is moved while a read waits", 4*time.Second, os.ErrDeadlineExceeded)
		_ = a.SetReadDeadline(start.Add(time.Hour))
		time.AfterFunc(time.Second, func() { _, _ = b.Write([]byte("x")) })
		reads("a deadline far away", 5*time.Second, nil)
	})
}

// TestReadDeadlineSetFirstWhileReading sets the first deadline ever while a read waits.
func TestReadDeadlineSetFirstWhileReading(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		start := time.Now()
		time.AfterFunc(time.Second, func() { _ = a.SetReadDeadline(time.Now()) })
		time.AfterFunc(time.Minute, func() { _ = a.Close() })
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("read returned %v after %v, want %v after a second", err, time.Since(start), os.ErrDeadlineExceeded)
		}
	})
}

func TestWriteDeadline(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		sent := pattern(DefaultStreamWindow+10, 9)
		_ = a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.Write(sent)
		if n != DefaultStreamWindow || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write returned %d, %v; want a window and %v", n, err, os.ErrDeadlineExceeded)
		}
		_ = a.SetDeadline(time.Time{})
		go func() {
			_, err := a.Write(sent[n:])
			if err == nil {
				err = a.CloseWrite()
			}
			if err != nil {
				t.Errorf("the rest: %v", err)
			}
		}()
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d others of %d bytes arrived, %v", len(got), len(sent), err)
		}
	})
}

// TestWriteDeadlineOnAStalledLink has credit, but the link does not move: the deadline holds all the same, and what
// could not be sent keeps its credit.
func TestWriteDeadlineOnAStalledLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c net.Conn
		p := newPeerQueue(t, Config{Handler: func(uint32) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusSwitchingProtocols)
				c, _, _ = http.NewResponseController(w).Hijack()
			})
		}}, 1)
		p.sends(requestHead(messages.TypeWSRequest, 1, "GET", "/", 0, "Connection: Upgrade", "Upgrade: own"))
		sent := pattern(DefaultStreamWindow, 11)
		_, _ = c.Write(sent[:1]) // in the queue behind the head, and blocked in it
		synctest.Wait()
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		start := time.Now()
		n, err := c.Write(sent[1:])
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second || n == 0 || n == len(sent)-1 {
			t.Fatalf("write returned %d, %v after %v; want a part and %v after a second", n, err, time.Since(start), os.ErrDeadlineExceeded)
		}
		_ = c.SetWriteDeadline(time.Time{})
		go func() {
			if _, err := c.Write(sent[1+n:]); err != nil {
				t.Errorf("the rest: %v", err)
			}
			_ = c.Close()
		}()
		p.wantsResponse("upgraded", 1, 101, 0)
		if got := p.gathers("the bytes, within the first window", 1); !bytes.Equal(got, sent) {
			t.Errorf("%d others of %d bytes came", len(got), len(sent))
		}
	})
}

func TestUpgradedAddresses(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *UpgradedConn) {
		if a.LocalAddr().Network() != "harp" || a.RemoteAddr().Network() != "harp" {
			t.Errorf("networks %v and %v", a.LocalAddr().Network(), a.RemoteAddr().Network())
		}
		if got := fmt.Sprint(a.RemoteAddr(), b.RemoteAddr()); !strings.Contains(got, "192.0.2.7:1234") {
			t.Errorf("remote addresses %q, want the visitor's at the agent", got)
		}
	})
}

// TestUpgradedLinkDeath kills the link below an upgraded connection.
func TestUpgradedLinkDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		visitor, service, p := upgrades(t)
		_, _ = service.Write([]byte("last words"))
		synctest.Wait()
		p.edge.Close(errors.New("gone"))
		<-p.edge.Done()
		<-p.agent.Done()
		if got, err := io.ReadAll(visitor); string(got) != "last words" || !errors.Is(err, ErrClosed) {
			t.Errorf("visitor got %q and %v, want what had come and %v", got, err, ErrClosed)
		}
		if _, err := service.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
			t.Errorf("service got %v, want %v", err, ErrClosed)
		}
		if _, err := service.Write([]byte("x")); !errors.Is(err, ErrClosed) {
			t.Errorf("service's write: %v, want %v", err, ErrClosed)
		}
		_ = visitor.Close()
		_ = service.Close()
	})
}
