package agent

import (
	"sync"
	"time"
)

// restUnsafe is how long a connection may have rested to carry a request that cannot be sent again: just before an
// upstream's idle limit, which often is only a few seconds, its end may be on the way already.
const restUnsafe = time.Second

// An upstreamPool keeps the idle HTTP/1.1 connections to one upstream.
type upstreamPool struct {
	max  int           // connections; negative keeps none
	rest time.Duration // how long each is kept

	mu     sync.Mutex // never held across I/O
	idle   []*upstreamConn
	timer  *time.Timer // runs expire while idle is not empty
	closed bool
}

// get takes out the connection that was used last; nil if there is none that has not rested too long. The upstream may
// have ended it meanwhile. safe says that the request may be sent again.
func (p *upstreamPool) get(safe bool) *upstreamConn {
	for {
		c := p.pop()
		if c == nil {
			return nil
		}
		rested := time.Since(c.restsSince)
		if rested < c.restLimit && (safe || rested < restUnsafe) {
			return c
		}
		c.close()
	}
}

func (p *upstreamPool) pop() *upstreamConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return c
}

// put keeps c for another request, and closes it or the one that has rested longest if there is no room. limit is
// how long the upstream says it keeps c; 0 if it does not.
func (p *upstreamPool) put(c *upstreamConn, limit time.Duration) {
	c.restsSince, c.restLimit = time.Now(), p.rest
	if limit > 0 {
		// Its clock began to run when it had sent the response.
		c.restLimit = min(p.rest, limit-min(time.Second, limit/2))
	}
	if old := p.push(c); old != nil {
		old.close()
	}
}

// push adds c and returns the connection that has to go for it, if any.
func (p *upstreamPool) push(c *upstreamConn) *upstreamConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.max < 1 {
		return c
	}
	var old *upstreamConn
	if len(p.idle) >= p.max {
		old = p.idle[0]
		copy(p.idle, p.idle[1:])
		p.idle[len(p.idle)-1] = c
	} else {
		p.idle = append(p.idle, c)
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(p.rest, p.expire)
	}
	return old
}

// expire closes what has rested too long. It runs again as long as anything rests.
func (p *upstreamPool) expire() {
	var old []*upstreamConn
	p.mu.Lock()
	kept := p.idle[:0]
	for _, c := range p.idle {
		if time.Since(c.restsSince) >= c.restLimit {
			old = append(old, c)
		} else {
			kept = append(kept, c)
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	switch {
	case p.closed:
	case len(kept) == 0:
		p.timer = nil
	default:
		p.timer = time.AfterFunc(p.rest, p.expire)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.close()
	}
}

// close closes the idle connections; put closes what comes later.
func (p *upstreamPool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
}
