package agent

import (
	"bytes"

	"github.com/harp-tunnel/harp/tunnel"
)

// relay passes the response on, each piece as soon as it comes. What is there already is written before it is
// flushed, and the end is not flushed at all: the visitor's side sends it when the handler returns.
func (x *h1Exchange) relay() error {
	v, in := x.v, &x.c.in
	x.relayHead()
	body := responseBody{kind: x.framing.kind, remain: x.framing.length}
	for pending := true; ; {
		piece, done, err := body.take(in)
		if err != nil {
			return brokenError("broke off in its answer", err)
		}
		if len(piece) > 0 {
			pending = true
			if err := v.write(piece); err != nil {
				return visitorError(err)
			}
		}
		if !done && len(piece) == 0 {
			if pending {
				pending = false
				if err := v.flush(); err != nil {
					return visitorError(err)
				}
			}
			if done, err = body.more(in); err != nil {
				return brokenError("broke off in its answer", err)
			}
		}
		switch {
		case done && body.kind == framingChunked:
			return x.relayTrailers(pending)
		case done:
			return nil
		}
	}
}

// relayHead passes the final head on, without a map where there is nothing in it to decide.
func (x *h1Exchange) relayHead() {
	v, c := x.v, x.c
	if w, ok := v.w.(tunnel.FieldsWriter); ok {
		var length int64
		if c.out, length, ok = c.head.appendFields(c.out[:0]); ok && w.WriteFields(c.head.status, length, c.out) {
			v.headSent = true
			return
		}
	}
	c.head.copyTo(v.w.Header(), false)
	v.writeHead(c.head.status, x.sender != nil && !x.sender.final.Load())
}

// relayTrailers reads what follows the last chunk.
func (x *h1Exchange) relayTrailers(pending bool) error {
	c := x.c
	if bytes.HasPrefix(c.in.unread(), []byte("\r\n")) {
		c.in.skip(2)
		return nil
	}
	if pending {
		if err := x.v.flush(); err != nil {
			return visitorError(err)
		}
	}
	section, err := c.in.section(x.f.maxHead)
	if err == nil {
		err = c.head.parseFields(section)
	}
	if err != nil {
		return brokenError("broke off in its trailers", err)
	}
	for _, f := range c.head.fields {
		x.v.setTrailer(f.name, f.value)
	}
	return nil
}
