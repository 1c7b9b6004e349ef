package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

const (
	// passLinger is how long a visitor may keep a connection that the agent has closed. What the agent said last may still
	// be on its way in the network.
	passLinger = time.Minute
	// passBuffer and passBufferMax are for one direction of a connection, in bytes: while it mostly waits, and once it moves
	// much.
	passBuffer, passBufferMax = 4 << 10, 32 << 10
)

// PassThrough reports whether TLS for a server name, in lower case, must not end here, as an agent ends it or did so when
// the name was last served. Then pass takes the visitor's connection with all that it sent, and closes it. What it
// carries is counted and not looked at.
func (s *Server) PassThrough(serverName string) (pass func(net.Conn), ok bool) {
	label, below := strings.CutSuffix(serverName, "."+s.options.Domain)
	if !below {
		label, _ = s.names.lookup(serverName)
	} else if !identity.ValidLabel(label) {
		return nil, false
	}
	if label == "" {
		return nil, false
	}
	serving, is := s.routes.endToEnd(label)
	if !is {
		return nil, false
	}
	return func(conn net.Conn) { s.pass(conn, label, serverName, serving) }, true
}

// pass carries one connection. One that cannot be carried is closed: there is nobody to say why in TLS.
func (s *Server) pass(conn net.Conn, label, serverName string, serving []*registration) {
	defer conn.Close()
	switch {
	case len(serving) == 0:
		s.log.Debug("connection dropped: the agent is away", "hostname", serverName)
		return
	case !s.visits.allow(visitorKey(addrOf(conn.RemoteAddr().String()))):
		s.metrics.limit(limitVisitorRate)
		return
	case !s.hosts.allow(label):
		s.metrics.limit(limitRate)
		return
	}
	up := s.openTLS(conn, serverName, inTurn(serving))
	if up == nil {
		return
	}
	s.metrics.stream(1)
	defer s.metrics.stream(-1)
	p := &passage{server: s, visitor: conn, agent: up}
	if s.options.PassIdle > 0 {
		p.idle = time.AfterFunc(s.options.PassIdle, p.reset)
		defer p.idle.Stop()
	}
	var wg sync.WaitGroup
	wg.Go(p.toVisitor) // ends when the tunnel's stream does, or writing fails
	p.toAgent()
	wg.Wait()
	_ = up.Close()
}

// openTLS finds the first agent that has room. A standby is asked only if no other is there.
func (s *Server) openTLS(conn net.Conn, serverName string, candidates []*registration) *tunnel.UpgradedConn {
	busy := false // an agent that is no standby is there
	for _, c := range candidates {
		if busy && c.standby() {
			break
		}
		c.link.requests.Add(1)
		ctx, cancel := context.WithTimeout(context.Background(), linger)
		up, err := c.link.session.OpenTLS(ctx, c.id, serverName, conn.RemoteAddr().String())
		cancel()
		if err == nil {
			return up
		}
		busy = busy || errors.Is(err, tunnel.ErrBusy)
	}
	if busy {
		s.metrics.limit(limitMaxStreams)
	}
	return nil
}

// A passage is a visitor's TLS connection on its way to the agent that ends it.
type passage struct {
	server  *Server
	visitor net.Conn
	agent   *tunnel.UpgradedConn
	idle    *time.Timer  // resets both; nil if silence has no end
	halves  atomic.Int32 // of the agent's that have ended: see agentDone
}

func (p *passage) toAgent() {
	err := p.copy(p.agent, p.visitor, func(n int64) { p.server.metrics.bytes(n, 0) })
	var cancelled *tunnel.CancelError
	switch {
	case err == nil:
		_ = p.agent.CloseWrite()
	case errors.As(err, &cancelled) && cancelled.Code == messages.CancelEnough:
		// The agent has closed. To close here, with bytes of the visitor's unread, would take back what it is still to get.
		p.agentDone()
		_, _ = io.Copy(io.Discard, p.visitor)
	default:
		p.reset()
	}
}

func (p *passage) toVisitor() {
	if err := p.copy(p.visitor, p.agent, func(n int64) { p.server.metrics.bytes(0, n) }); err != nil {
		p.reset()
		return
	}
	closeWrite(p.visitor)
	p.agentDone()
}

// agentDone is called when the agent reads no more, and when the last that it said was written. After both the visitor has
// passLinger to end, too.
func (p *passage) agentDone() {
	if p.halves.Add(1) == 2 {
		_ = p.visitor.SetReadDeadline(time.Now().Add(passLinger))
	}
}

// reset ends both sides so that neither takes it for a proper end.
func (p *passage) reset() {
	_ = p.agent.Reset()
	hangUp(p.visitor)
}

// copy returns nil at the end of from.
func (p *passage) copy(to io.Writer, from io.Reader, count func(int64)) error {
	buf := make([]byte, passBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if p.idle != nil {
				p.idle.Reset(p.server.options.PassIdle)
			}
			count(int64(n))
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
			if n == len(buf) && n < passBufferMax {
				buf = make([]byte, passBufferMax)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// redirectToAgent answers a request for a name whose TLS does not end here. It came over plain HTTP, or over a connection
// for another name, as browsers do when one certificate is for both; that gets 421 (RFC 9110, section 15.5.20), upon
// which they connect anew.
func (v *visit) redirectToAgent() {
	status := http.StatusMisdirectedRequest
	if v.r.TLS == nil && strings.HasPrefix(v.r.RequestURI, "/") {
		status = http.StatusPermanentRedirect
		v.w.Header().Set("Location", "https://"+hostWithoutPort(v.r.Host)+v.r.RequestURI)
	}
	v.w.Header()["Content-Length"] = []string{"0"}
	v.server.metrics.request(status, time.Since(v.began).Seconds())
	hurry(v.w, v.r)
	v.w.WriteHeader(status)
}
