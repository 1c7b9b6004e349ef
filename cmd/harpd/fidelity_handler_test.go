package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHandlerResponse publishes a handler of the agent's own process, without a listening port.
func TestHandlerResponse(t *testing.T) {
	t.Parallel()
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %d %v", r.Method, r.RequestURI, r.Host, r.ContentLength, err))
		w.Header().Set("X-Query", r.URL.RawQuery)
		w.WriteHeader(201)
		w.Write(b)
	}))
	c := tn.dial(t)
	eachFraming(t, func(t *testing.T, chunked bool) {
		m := c.post("/a%2Fb//c?x;y=%zz", []byte("hello"), chunked)
		length := 5
		if chunked {
			length = -1
		}
		if got, want := m.get("X-Seen"), fmt.Sprintf("POST /a%%2Fb//c?x;y=%%zz %s %d <nil>", tn.Host, length); got != want {
			t.Errorf("the handler saw %q, want %q", got, want)
		}
		if m.status() != 201 || string(m.Body) != "hello" || len(m.values("Set-Cookie")) != 2 || m.get("X-Query") != "x;y=%zz" {
			t.Errorf("got %q %q %q", m.Line, m.Fields, m.Body)
		}
	})
	if m := c.do("HEAD", "/x"); m.status() != 201 || len(m.Body) > 0 {
		t.Errorf("HEAD got %q %q", m.Line, m.Body)
	}
	if m := c.do("OPTIONS", "*"); m.status() != 200 && m.status() != 201 {
		t.Errorf("OPTIONS * got %q", m.Line)
	}
}

// TestHandlerFlush wants each flushed piece before the next one is written.
func TestHandlerFlush(t *testing.T) {
	t.Parallel()
	next := make(chan struct{}, 1)
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush() // the head alone
		for i := range pieces {
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	}))
	var watch stopwatch
	c := tn.dial(t)
	c.send(c.request("GET", "/x"))
	b, err := bodyOf(c.br, c.readHead(), "GET")
	if err != nil {
		t.Fatal(err)
	}
	for i := range pieces {
		<-time.After(pieceGap)
		sent := time.Now()
		next <- struct{}{}
		got := make([]byte, 9)
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(b, got); err != nil || string(got) != fmt.Sprintf("data: %d\n\n", i) {
			t.Fatalf("piece %d is %q (%v)", i, got, err)
		}
		watch.since(sent)
	}
	if rest, err := io.ReadAll(b); err != nil || len(rest) > 0 {
		t.Errorf("after the last piece: %q, %v", rest, err)
	}
	watch.report(t)
}

// TestHandlerTrailers uses both of net/http's ways to send trailers, and reads those of the request.
func TestHandlerTrailers(t *testing.T) {
	t.Parallel()
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Late", r.Trailer.Get("X-Late"))
	}))
	c := tn.dial(t)
	c.send(c.request("POST", "/x", "Trailer: X-Sum", "Transfer-Encoding: chunked") + chunk("hello") + "0\r\nX-Sum: abc\r\nX-Late: d\r\n\r\n")
	m := c.final("POST")
	if string(m.Body) != "hello" || len(m.Trailers) != 2 {
		t.Errorf("got %q with trailers %q, want X-Sum and X-Late", m.Body, m.Trailers)
	}
	for _, f := range []field{{"X-Sum", "abc"}, {"X-Late", "d"}} {
		if v := fieldValues(m.Trailers, f.Name); len(v) != 1 || v[0] != f.Value {
			t.Errorf("trailer %s is %q, want %q", f.Name, v, f.Value)
		}
	}
}

// TestHandlerInterim sends 103 from a handler.
func TestHandlerInterim(t *testing.T) {
	t.Parallel()
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(103)
		w.Header().Del("Link")
		fmt.Fprint(w, "done")
	}))
	c := tn.dial(t)
	c.send(c.request("GET", "/x"))
	if m := c.response("GET"); m.status() != 103 || !m.has("Link") {
		t.Errorf("got %q %q, want 103 with Link", m.Line, m.Fields)
	}
	if m := c.response("GET"); m.status() != 200 || string(m.Body) != "done" || m.has("Link") {
		t.Errorf("got %q %q %q, want 200 without Link", m.Line, m.Fields, m.Body)
	}
}

// TestHandlerPanics wants a panic to end one answer: 502 before the head, a broken transfer after it.
func TestHandlerPanics(t *testing.T) {
	t.Parallel()
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, "ok")
			return
		case "/head":
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		case "/body":
			fmt.Fprint(w, "hello")
			w.(http.Flusher).Flush()
		case "/sized":
			w.Header().Set("Content-Length", "10")
			fmt.Fprint(w, "hello")
			w.(http.Flusher).Flush()
		case "/short":
			w.Header().Set("Content-Length", "10")
			fmt.Fprint(w, "hello")
			return // net/http breaks such an answer off
		}
		if r.URL.RawQuery == "abort" {
			panic(http.ErrAbortHandler)
		}
		panic("the handler is broken")
	}))
	for _, query := range []string{"abort", "panic"} {
		if query == "panic" && direct() {
			continue // net/http does the same, and prints the stack
		}
		for _, path := range []string{"/first", "/head", "/body", "/sized", "/short"} {
			c := tn.dial(t)
			c.send(c.request("GET", path+"?"+query))
			c.SetReadDeadline(time.Now().Add(patience))
			m := readMessage(c.br, "GET")
			if m.Err == nil && m.status() != 502 || isTimeout(m.Err) {
				t.Errorf("%s?%s: got %q %q, ended by %v; want a visible failure", path, query, m.Line, m.Body, m.Err)
			}
			if path == "/first" && !direct() && (m.status() != 502 || !m.has("Harp-Error")) {
				t.Errorf("%s?%s: got %q (%v), want 502: nothing was sent yet", path, query, m.Line, m.Err)
			}
			if m.status() == 502 && path != "/first" && path != "/short" {
				t.Errorf("%s?%s: got 502 after the head was flushed", path, query)
			}
			if m := tn.dial(t).do("GET", "/ok"); string(m.Body) != "ok" {
				t.Errorf("after %s?%s the next request got %q", path, query, m.Line)
			}
		}
	}
}

// TestHandlerHijack takes the connection over, as WebSocket libraries do.
func TestHandlerHijack(t *testing.T) {
	t.Parallel()
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, "hijack: "+err.Error(), 500)
			return
		}
		defer conn.Close()
		switch r.URL.Path {
		case "/silent":
			return
		case "/plain":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\nX-Own: 1\r\n\r\nwelcome\n")
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(conn, strings.ToUpper(line))
		}
	}))

	c := tn.dial(t)
	c.send(c.request("GET", "/shout", "Connection: Upgrade", "Upgrade: shout") + "early\n")
	if h := c.readHead(); h.status() != 101 || h.get("Upgrade") != "shout" || h.get("X-Own") != "1" {
		t.Fatalf("got %q %q, want the handler's 101", h.Line, h.Fields)
	}
	if got := c.readExactly(8); got != "welcome\n" {
		t.Errorf("the first line is %q", got)
	}
	for _, line := range []string{"early\n", "hello\n", strings.Repeat("x", 100_000) + "\n"} {
		if line != "early\n" {
			c.send(line)
		}
		if got := c.readUntil("\n"); got != strings.ToUpper(line) {
			t.Errorf("the echo of %.20q is %.20q", line, got)
		}
	}
	c.Close()

	c = tn.dial(t)
	c.send(c.request("GET", "/silent"))
	c.SetReadDeadline(time.Now().Add(patience))
	if m := readMessage(c.br, "GET"); m.Err == nil && m.status() != 502 || isTimeout(m.Err) {
		t.Errorf("a handler that takes the connection and closes it gave %q (%v), want 502 or a closed connection", m.Line, m.Err)
	}

	c = tn.dial(t)
	if m := c.do("GET", "/plain"); m.status() != 200 || string(m.Body) != "hi" {
		t.Errorf("an answer written by hand arrived as %q %q", m.Line, m.Body)
	}
}
