package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"

	"github.com/harp-tunnel/harp/messages"
)

// upgrade passes a 101 on, and then bytes both ways until both directions have ended.
func (x *h1Exchange) upgrade() error {
	hijacker, ok := capability[http.Hijacker](x.v.w)
	if !ok {
		return &forwardFailure{code: messages.CancelUnsupported, reason: "this connection cannot be upgraded"}
	}
	if x.sender != nil {
		<-x.sender.done // the request comes before the upgraded bytes
		if !x.sender.whole {
			return brokenError("switched protocols in the middle of the request", nil)
		}
	}
	x.c.abrupt.Store(true)
	x.c.head.copyTo(x.v.w.Header(), true)
	x.v.writeHead(http.StatusSwitchingProtocols, false)
	visitor, rw, err := hijacker.Hijack()
	if err != nil {
		return &forwardFailure{code: messages.CancelInternal, reason: "cannot take the connection over: " + err.Error(), err: err}
	}
	defer visitor.Close()
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	earlyAnswer := bytes.Clone(x.c.in.unread())
	x.c.in.release() // it may be a long time
	var wg sync.WaitGroup
	wg.Go(func() { x.pass(x.c.conn, visitor, early) }) // ends with either connection
	x.pass(visitor, x.c.conn, earlyAnswer)
	wg.Wait()
	return nil
}

// pass copies early and then all that src sends to dst. The end of src becomes a half-close of dst, a reset a reset.
func (x *h1Exchange) pass(dst, src net.Conn, early []byte) {
	if len(early) > 0 {
		if _, err := dst.Write(early); err != nil {
			passWriteError(src, err)
			return
		}
	}
	lent := lentBuffer{from: x.f.buffers}
	defer lent.release()
	for last := 0; ; {
		buf := lent.next(last)
		n, err := src.Read(buf)
		if last = n; n == len(buf) {
			last = smallBuffer
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				passWriteError(src, err)
				return
			}
		}
		switch {
		case err == io.EOF && !x.v.gone(): // a visitor that is known to be gone made no proper end
			closeWrite(dst)
			return
		case err != nil:
			resetConn(dst)
			resetConn(src)
			return
		}
	}
}

// passWriteError ends the direction from src to a peer that cannot be written to. If that was reset, so is src. If it
// has merely closed, the other direction brings its last words and its end.
func passWriteError(src net.Conn, err error) {
	if errors.Is(err, syscall.ECONNRESET) {
		resetConn(src)
	}
}

// closeWrite ends what is sent to c, or all of c if it knows no half-close.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
		return
	}
	c.Close()
}
