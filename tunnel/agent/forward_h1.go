package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/harp-tunnel/harp/messages"
)

const (
	// maxInterim is how many 1xx responses may come before the final one.
	maxInterim = 16

	// inlineBody is the largest request body, in bytes, that is sent in one write with the head.
	inlineBody = 4 << 10
)

// forwardH1 carries a request over an HTTP/1.1 connection.
func (f *Forwarder) forwardH1(v *forwardVisitor) error {
	ctx := v.r.Context()
	safe := v.plan.body == bodyNone && safeMethod(v.r.Method)
	var c *upstreamConn
	if v.plan.upgrade == "" {
		c = f.pool.get(safe)
	}
	for {
		if c == nil {
			conn, err := f.dialer.dial(ctx, "http/1.1")
			if err != nil {
				if f.h2 != nil {
					f.h2.refused.Store(false) // it may have changed its mind about ALPN
				}
				return dialError(err)
			}
			c = newUpstreamConn(conn, f.buffers)
		}
		x := h1Exchange{f: f, v: v, c: c, used: c.used}
		err := x.run()
		// An upstream may close an idle connection at the moment in which it gets a request.
		if err == nil || !x.used || x.heard || x.spent && !safe || v.gone() {
			return err
		}
		if c = nil; !x.spent {
			c = f.pool.get(safe) // that one was stale; others may not be
		}
	}
}

// safeMethod reports whether a request may be sent again without asking (RFC 9110 section 9.2.1).
func safeMethod(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// An h1Exchange is one request and its response over one connection, which it owns.
type h1Exchange struct {
	f *Forwarder
	v *forwardVisitor
	c *upstreamConn

	sender  *bodySender // nil if there is no body, or it went with the head
	framing responseFraming
	used    bool // the connection carried another request before
	spent   bool // some of the request may have reached the upstream, or it cannot be sent at all
	heard   bool // some of a response came
}

// run carries the request and gives the connection back or closes it. The sender has ended when run returns.
func (x *h1Exchange) run() (err error) {
	unwatch := x.watch()
	complete := false
	defer func() { x.release(complete, unwatch()) }() // also if the ResponseWriter panics
	err = x.converse()
	complete = err == nil
	if err != nil && x.sender != nil {
		x.c.kill()
		x.sender.finish(false)
		if x.sender.readErr != nil {
			err = bodyError(x.sender.readErr)
		}
	}
	return err
}

// watch has the connection killed when the visitor leaves. It is context.AfterFunc without its allocations where the
// context is the tunnel's.
func (x *h1Exchange) watch() (unwatch func() bool) {
	ctx, kill := x.v.r.Context(), &x.c.kill
	w, ok := ctx.(interface {
		Watch(*func())
		Unwatch(*func()) bool
	})
	if !ok {
		return context.AfterFunc(ctx, *kill)
	}
	w.Watch(kill)
	return func() bool { return w.Unwatch(kill) }
}

// release ends the use of the connection. live says that the visitor has not left.
func (x *h1Exchange) release(complete, live bool) {
	c := x.c
	if !complete || !live {
		c.kill()
	}
	whole := x.sender == nil || x.sender.finish(complete)
	if complete && live && whole && x.framing.reuse && len(c.in.unread()) == 0 {
		c.rest()
		x.f.pool.put(c, x.framing.rest)
		return
	}
	c.in.release()
	c.close()
}

func (x *h1Exchange) converse() error {
	if err := x.send(); err != nil {
		return err
	}
	if err := x.awaitHead(); err != nil {
		return err
	}
	if x.c.head.status == http.StatusSwitchingProtocols {
		return x.upgrade()
	}
	return x.relay()
}

// send writes the head, and starts the sender if a body has to follow.
func (x *h1Exchange) send() error {
	var ok bool
	c := x.c
	x.spent = true
	if c.out, ok = x.f.appendRequestHead(c.out[:0], x.v); !ok {
		return &forwardFailure{code: messages.CancelProtocol, reason: "a header field cannot be sent on"}
	}
	if x.v.plan.body == bodyNone {
		sent, err := c.ask()
		x.spent = sent > 0
		return err
	}
	if c.stale() { // before the body is touched
		x.spent = false
		return errStale
	}
	n := x.bodyAtHand()
	if n > 0 {
		start := len(c.out)
		c.out = append(c.out, make([]byte, n)...)
		if _, err := io.ReadFull(x.v.r.Body, c.out[start:]); err != nil {
			return bodyError(err)
		}
	}
	sent, err := c.conn.Write(c.out)
	x.spent = sent > 0 || n > 0
	if err == nil && n == 0 {
		x.sender = newBodySender(c, x.v)
		go x.sender.run() // ends with the body or the connection; release waits for it
	}
	return nil // if the write failed, the upstream may still have answered: reading tells
}

// bodyAtHand returns the length of a small body that can be read at once, as its Buffered method says; else 0.
func (x *h1Exchange) bodyAtHand() int {
	if x.v.plan.body != bodySized || x.v.plan.expect || x.v.r.ContentLength > inlineBody {
		return 0
	}
	n := int(x.v.r.ContentLength)
	if b, ok := x.v.r.Body.(interface{ Buffered() int }); !ok || b.Buffered() < n {
		return 0
	}
	return n
}

// awaitHead reads up to the final head, and passes interim ones on.
func (x *h1Exchange) awaitHead() error {
	h := &x.c.head
	for interims := 0; ; interims++ {
		section, err := x.c.in.section(x.f.maxHead)
		x.heard = x.heard || section != "" || len(x.c.in.unread()) > 0
		switch {
		case err == errSectionTooLong:
			return brokenError(fmt.Sprintf("sent a head of more than %d bytes", x.f.maxHead), nil)
		case err != nil && !x.heard:
			return brokenError("gave no answer", err)
		case err != nil:
			return brokenError("broke off in the head of its answer", err)
		}
		if err := h.parse(section); err != nil {
			return brokenError(fmt.Sprintf("sent no HTTP answer (%.40q)", section), err)
		}
		if h.status >= 200 || h.status == http.StatusSwitchingProtocols {
			return x.judgeHead()
		}
		if interims == maxInterim {
			return brokenError(fmt.Sprintf("sent more than %d interim answers", maxInterim), nil)
		}
		x.v.writeInterim(h.status, func(dst http.Header) { h.copyTo(dst, false) })
		if h.status == http.StatusContinue && x.sender != nil {
			x.sender.answer(true)
		}
	}
}

// judgeHead works out the framing of the final head.
func (x *h1Exchange) judgeHead() (err error) {
	if x.sender != nil {
		x.sender.answer(false)
	}
	if x.c.head.status == http.StatusSwitchingProtocols && x.v.plan.upgrade == "" {
		return brokenError("switched protocols unasked", nil)
	}
	if x.framing, err = x.c.head.frame(x.v.r.Method); err != nil {
		return brokenError("sent a response whose end cannot be told", err)
	}
	if x.c.head.status == http.StatusSwitchingProtocols {
		x.framing.reuse = false // what follows is not HTTP
	}
	return nil
}
