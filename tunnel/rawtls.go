package tunnel

import (
	"context"
	"errors"
	"fmt"

	"github.com/harp-tunnel/harp/messages"
)

// OpenTLS hands a visitor's TLS connection, unopened, to the agent of a registration that ends TLS itself. What is
// written to the result is what the visitor sends, beginning with the ClientHello. The caller closes it. Errors to branch
// on are RoundTrip's; that the agent refused the stream comes as a *CancelError from Read.
func (s *Session) OpenTLS(ctx context.Context, registration uint32, serverName, visitor string) (*UpgradedConn, error) {
	st := newStream(s, 0, messages.TypeWSMessage)
	st.finalHead = true // there is no response head to wait for
	request := messages.TLSRequest{Registration: registration, ServerName: serverName, Visitor: visitor}
	err := s.begin(ctx, st, func(b []byte) ([]byte, error) { return messages.AppendTLSRequest(b, st.id, &request) })
	if err != nil {
		return nil, err
	}
	return newUpgradedConn(st), nil
}

// begin sends what encode appends as the first message of st, with its number.
func (s *Session) begin(ctx context.Context, st *stream, encode func([]byte) ([]byte, error)) error {
	batch, err := s.out.head(ctx.Done, false, func(b []byte) ([]byte, error) {
		if err := s.admit(st); err != nil {
			return b, err
		}
		return encode(b)
	})
	if err == nil {
		st.mu.Lock()
		st.batch = batch
		st.mu.Unlock()
		return nil
	}
	switch {
	case st.id != 0: // admitted, but the head was too long
		st.shut(err, true)
	case errors.Is(err, errExhausted):
		s.Disconnect(messages.Disconnect{Code: messages.DisconnectDraining, Reason: err.Error()})
		err = ErrDraining
	case errors.Is(err, errGivenUp):
		err = context.Cause(ctx)
	case errors.Is(err, ErrClosed):
		err = errors.Join(errUnsent, err)
	}
	return err
}

// acceptTLS opens a stream at the agent for a visitor's TLS connection. h has a fresh number.
func (s *Session) acceptTLS(h messages.Header, payload []byte) error {
	if s.config.TLSHandler == nil {
		return s.cancelUnknown(h.Stream, messages.CancelUnsupported, "this agent does not end TLS")
	}
	request, err := messages.ParseTLSRequest(string(payload))
	if err != nil {
		return s.cancelUnknown(h.Stream, messages.CancelProtocol, err.Error())
	}
	handler := s.config.TLSHandler(request)
	if handler == nil {
		return s.cancelUnknown(h.Stream, messages.CancelRefused, "no such registration")
	}
	st := newStream(s, h.Stream, messages.TypeWSMessage)
	if !s.accept(st) {
		return s.cancelUnknown(h.Stream, messages.CancelRefused, "draining, or too many streams")
	}
	conn := newUpgradedConn(st)
	conn.remote = request.Visitor
	s.handlers.Go(func() { // ends with the handler, whose connection ends with the stream
		defer s.served()
		defer func() {
			if v := recover(); v != nil {
				s.config.Logger.Error("handler panicked", "panic", fmt.Sprint(v))
				_ = conn.Reset()
			}
		}()
		handler(conn)
	})
	return nil
}
