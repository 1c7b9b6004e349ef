package tunnel

import (
	"fmt"

	"github.com/harp-tunnel/harp/messages"
)

// keptWakes is for how many streams' wakes a link keeps room while it is idle.
const keptWakes = 64

// dispatch hands the messages of one batch to their streams, and then wakes their readers: each finds all that has come
// for it, so that a short answer goes to the visitor in one piece. b is used only until it returns. An error ends the link.
func (s *Session) dispatch(b []byte) error {
	defer s.wakeReaders()
	for len(b) > 0 {
		h, payload, rest, err := messages.Next(b)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		b = rest
		switch h.Type {
		case messages.TypePing:
			err = s.handlePing(h, payload)
		case messages.TypeDisconnect:
			err = s.handleDisconnect(payload)
		case messages.TypeHTTPRequest, messages.TypeWSRequest, messages.TypeTLSRequest:
			err = s.handleRequest(h, payload)
		case messages.TypeHTTPResponse, messages.TypeWSResponse, messages.TypeBody, messages.TypeWSMessage,
			messages.TypeTrailers, messages.TypeCredit, messages.TypeCancel, messages.TypeWSTeardown:
			err = s.handleStream(h, payload)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wakeLater notes that the reader of st is to be woken at the end of the batch. Only the reader of the link calls it.
func (s *Session) wakeLater(st *stream) {
	if n := len(s.woken); n == 0 || s.woken[n-1] != st {
		s.woken = append(s.woken, st)
	}
}

func (s *Session) wakeReaders() {
	for _, st := range s.woken {
		st.wakeReader()
	}
	clear(s.woken)
	if s.woken = s.woken[:0]; cap(s.woken) > keptWakes {
		s.woken = nil
	}
}

func (s *Session) handlePing(h messages.Header, payload []byte) error {
	data, err := messages.ParsePing(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if h.Flags&messages.FlagAck != 0 {
		s.noteAck(data)
		return nil
	}
	return s.out.control(func(b []byte) []byte { return messages.AppendPing(b, messages.FlagAck, data) })
}

func (s *Session) handleDisconnect(payload []byte) error {
	d, err := messages.ParseDisconnect(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if d.Code == messages.DisconnectProtocol {
		return fmt.Errorf("tunnel: ended by peer: %s", d.Reason)
	}
	if d.Registration == 0 {
		s.drain()
	}
	if s.config.OnDisconnect != nil {
		s.config.OnDisconnect(d)
	}
	return nil
}

// handleStream hands a message to the stream that it names.
func (s *Session) handleStream(h messages.Header, payload []byte) error {
	st, newest := s.lookup(h.Stream)
	if st == nil {
		if h.Stream == 0 {
			return fmt.Errorf("%w: %s on stream 0", ErrProtocol, h.Type)
		}
		if h.Stream > newest && h.Type != messages.TypeCancel && h.Type != messages.TypeWSTeardown {
			return s.cancelUnknown(h.Stream, messages.CancelProtocol, h.Type.String()+" for a stream that was never opened")
		}
		return nil // it has ended here; what was on its way is dropped
	}
	if len(payload) > maxHead(h.Type) {
		st.cancel(messages.CancelTooLarge, h.Type.String()+" is too large")
		return nil
	}
	switch h.Type {
	case messages.TypeHTTPResponse, messages.TypeWSResponse:
		s.handleResponse(st, h, string(payload))
	case messages.TypeBody, messages.TypeWSMessage:
		if h.Type != st.kind {
			st.cancel(messages.CancelProtocol, h.Type.String()+" on this kind of stream")
			return nil
		}
		st.receive(payload, h.Flags&messages.FlagEnd != 0)
	case messages.TypeTrailers:
		fields, err := messages.ParseTrailers(string(payload))
		if err != nil || st.kind != messages.TypeBody {
			st.cancel(messages.CancelProtocol, "bad trailers")
			return nil
		}
		st.receiveTrailers(fields)
	case messages.TypeCredit:
		n, err := messages.ParseCredit(payload)
		if err != nil {
			st.cancel(messages.CancelProtocol, err.Error())
			return nil
		}
		st.receiveCredit(n)
	case messages.TypeCancel, messages.TypeWSTeardown:
		code, reason, err := messages.ParseCancel(payload)
		switch {
		case err != nil:
			code, reason = messages.CancelProtocol, "malformed cancel"
		case code > messages.CancelUnsupported: // a newer one
			code = messages.CancelInternal
		}
		st.receiveCancel(code, reason)
	}
	return nil
}

// maxHead is the largest payload in bytes that is taken of a type: heads and trailers do not count against the window
// of their stream.
func maxHead(t messages.Type) int {
	switch t {
	case messages.TypeHTTPRequest, messages.TypeWSRequest:
		return maxRequestHead
	case messages.TypeHTTPResponse, messages.TypeWSResponse:
		return maxResponseHead
	case messages.TypeTrailers:
		return maxTrailers
	}
	return messages.MaxPayload
}

// cancelUnknown tells the peer that a stream does not exist here.
func (s *Session) cancelUnknown(id uint32, code messages.CancelCode, reason string) error {
	return s.out.control(func(b []byte) []byte {
		return messages.AppendCancel(b, messages.TypeCancel, id, code, reason)
	})
}
