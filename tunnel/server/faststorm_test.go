package server

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
)

// Many visitors at once, some of whom leave, ask twice at a time, or dally, while agents die: each who gets an answer gets his
// own.
func TestFastStorm(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, nil)
	key := newKey(t)
	serve := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path[1] == '7' {
			time.Sleep(time.Millisecond)
		}
		io.WriteString(w, strings.Repeat(r.RequestURI+" ", 1+len(r.RequestURI)*len(r.RequestURI)))
	}
	_, host := f.publishAs(key, identity.Registration{Mode: identity.ModeStandby, Instance: "rock"}, serve)
	end := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	var answers atomic.Int32
	for i := range 40 {
		wg.Go(func() { // ends when the time is over
			for time.Now().Before(end) {
				n := f.stormVisit(t, fmt.Sprint("/", i, "-", rand.IntN(1000), strings.Repeat("x", rand.IntN(30))), host)
				answers.Add(int32(n))
			}
		})
	}
	for n := 0; time.Now().Before(end); n++ {
		a, _ := f.publishAs(key, identity.Registration{Mode: identity.ModeStandby, Instance: fmt.Sprint("reed", n%3)}, serve)
		time.Sleep(20 * time.Millisecond)
		a.conn.Close()
	}
	wg.Wait()
	f.wantQuiet()
	if n := answers.Load(); n < 100 {
		t.Errorf("%d answers prove nothing", n)
	}
}

// stormVisit is one connection of a storm. It returns how many answers it got.
func (f *fastEdge) stormVisit(t *testing.T, target, host string) (n int) {
	v := f.front.visit()
	defer v.Close()
	for range rand.IntN(20) {
		says := "GET " + target + " HTTP/1.1\nHost: " + host + "\n\n"
		want := strings.Repeat(target+" ", 1+len(target)*len(target))
		times := 1
		switch rand.IntN(20) {
		case 0:
			v.says(says, "")
			return n
		case 1:
			v.says(says[:len(says)/2], "")
			v.says(says[len(says)/2:], "")
		case 2:
			v.says(says+says, "")
			times = 2
		case 3:
			v.says(says, "")
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
			v.says(says, "")
			times = 2
		default:
			v.says(says, "")
		}
		for range times {
			if got := v.answer(); got.StatusCode == 502 || got.StatusCode == 503 {
				continue // its agent was killed
			} else if got.err != nil && strings.HasPrefix(want, got.body) {
				return n // in the midst of it
			} else if got.body != want || got.err != nil {
				t.Errorf("%s: got %s %.80q (%v)", target, got.Status, got.body, got.err)
				return n
			}
			n++
		}
	}
	return n
}

// The server stops in the midst of many requests: each that the upstream got is answered, and whole.
func TestShutdownInTheMidst(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, nil)
	var ran, answers atomic.Int32
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		ran.Add(1)
		if n := rand.IntN(10); n > 5 {
			time.Sleep(time.Duration(n) * time.Millisecond)
		}
		io.WriteString(w, r.RequestURI+strings.Repeat("x", 1000))
	})
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() { // ends when the server has
			v := f.front.visit()
			for j := 0; ; j++ {
				target := fmt.Sprintf("/%d/%d", i, j)
				if _, err := io.WriteString(v, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
					return
				}
				if _, err := v.r.Peek(1); err != nil {
					return
				}
				f.wantBody(target, v.answer(), 200, target+strings.Repeat("x", 1000))
				answers.Add(1)
			}
		})
	}
	eventually(t, "it goes on", func() bool { return answers.Load() > 500 })
	f.wantHanded("before the end", 0)
	if err := f.web.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	f.wantQuiet()
	if a, b := ran.Load(), answers.Load(); a != b {
		t.Errorf("%d requests ran, and %d were answered", a, b)
	}
}

func TestManyFastConnections(t *testing.T) {
	t.Parallel()
	const many = 2000
	f := newFastEdge(t, Options{MaxStreams: 2 * many}, nil)
	_, host := f.publish(echoing)
	turn := make(chan struct{}, 100)
	var all []*visitor
	for range many {
		c, err := net.Dial("tcp", f.front.addr)
		if err != nil {
			t.Skip("not so many connections here: ", err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(4 * patience))
		all = append(all, &visitor{Conn: c, t: t, r: bufio.NewReaderSize(c, 512)})
	}
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() { // ends with its requests
			for j := range 3 {
				turn <- struct{}{}
				target := fmt.Sprintf("/%d/%d", i, j)
				f.wantBody(target, v.gets(host, target, ""), 200, target)
				<-turn
			}
		})
	}
	wg.Wait()
	f.wantQuiet()
}
