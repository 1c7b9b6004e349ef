package tunnel

import (
	"fmt"
	"io"
	"time"
)

// readLoop reads from the link until it ends. It waits on a shallow stack. A link that has been silent will be silent again:
// then a fresh goroutine goes on, because this one's stack has grown. Without that an idle link takes 1.5 KB more, a tenth.
func (s *Session) readLoop() {
	for !s.ending() {
		before := s.heard.Load()
		text, r, err := s.conn.NextMessage()
		if err != nil {
			s.Close(fmt.Errorf("tunnel: read from link: %w", err))
			return
		}
		if err := s.readBatch(text, r); err != nil {
			s.Close(err)
			return
		}
		if time.Duration(s.heard.Load()-before) > s.config.PingInterval/2 {
			s.reader.Go(s.readLoop) // ends when the connection closes
			return
		}
	}
}

// ending reports whether Close was called.
func (s *Session) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing != nil
}

// readBatch handles the HARP messages in r.
func (s *Session) readBatch(text bool, r io.Reader) error {
	b, err := s.readMessage(buffer(nil), r)
	if err != nil {
		return fmt.Errorf("tunnel: read from link: %w", err)
	}
	if text {
		err = s.handleText(b)
	} else {
		err = s.dispatch(b)
	}
	releaseBuffer(b)
	return err
}

// readMessage appends what r has to b, which grows as needed. Each piece of a message is a sign of life.
func (s *Session) readMessage(b []byte, r io.Reader) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		s.heard.Store(int64(time.Since(s.start)))
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

func (s *Session) handleText(text []byte) error {
	if s.config.OnText == nil {
		return fmt.Errorf("%w: unexpected text message", ErrProtocol)
	}
	return s.config.OnText(text)
}
