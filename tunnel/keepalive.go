package tunnel

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// keepalive pings after an interval of silence in either direction, and ends the session with ErrSilent after two in
// which nothing was heard. A peer whose many bytes take long to get here hears from us by that: its own ping is behind
// them. It costs one timer a link. stop ends it and waits for a check that is running.
func (s *Session) keepalive(end context.CancelCauseFunc) (stop func()) {
	interval := s.config.PingInterval
	var mu sync.Mutex // held by a check; guards stopped
	var timer *time.Timer
	stopped := false
	wall := time.Now().Round(0)
	check := func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		now := time.Since(s.start)
		idle, quiet := now-time.Duration(s.heard.Load()), now-time.Duration(s.out.sent.Load())
		// A machine that slept has a wall clock ahead of its timers; the peer has given the link up meanwhile.
		slept := time.Now().Round(0).Sub(wall) > 4*interval
		wall = time.Now().Round(0)
		switch {
		case idle >= 2*interval, slept && idle >= interval:
			end(ErrSilent)
		case idle >= interval:
			s.ping(now)
			timer.Reset(2*interval - idle)
		case quiet >= interval:
			s.ping(now)
			timer.Reset(interval - idle)
		default:
			timer.Reset(interval - max(idle, quiet))
		}
	}
	mu.Lock()
	timer = time.AfterFunc(interval, check)
	mu.Unlock()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// ping asks the peer for a sign of life. The message of a reserved type before it keeps receivers used to skipping.
func (s *Session) ping(now time.Duration) {
	var data [messages.PingLen]byte
	binary.BigEndian.PutUint64(data[:], uint64(now))
	_ = s.out.control(func(b []byte) []byte {
		return messages.AppendPing(messages.AppendReserved(b, 0), 0, data)
	})
}

// noteAck takes the answer to a ping, or what the peer makes of one.
func (s *Session) noteAck(data [messages.PingLen]byte) {
	now := time.Since(s.start)
	if sent := time.Duration(binary.BigEndian.Uint64(data[:])); sent > 0 && sent <= now {
		s.trips.note(now-sent, now)
	}
}
