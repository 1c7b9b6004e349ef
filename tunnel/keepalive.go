package tunnel

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// A keepalive pings after an interval of silence in either direction, and ends its session with ErrSilent after two in
// which nothing was heard. A peer whose many bytes take long to get here hears from us by that: its own ping is behind
// them. It costs one timer a link. The agent lets a silence last a tenth longer: at the same time as the edge, both would
// ping, and an edge with many idle links has little else to do. So the edge learns the round trip, for its windows.
type keepalive struct {
	mu      sync.Mutex // held by a check; guards the fields below
	timer   *time.Timer
	stopped bool
	wall    time.Time // of the last check
}

func (k *keepalive) start(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wall = time.Now().Round(0)
	k.timer = time.AfterFunc(s.pingAfter(), s.checkAlive)
}

// stop ends it and waits for a check that is running.
func (k *keepalive) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	k.timer.Stop()
}

// pingAfter is how long this end lets a silence last.
func (s *Session) pingAfter() time.Duration {
	if s.isEdge() {
		return s.config.PingInterval
	}
	return s.config.PingInterval + s.config.PingInterval/10
}

func (s *Session) checkAlive() {
	k, interval, after := &s.keepalive, s.config.PingInterval, s.pingAfter()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return
	}
	now := time.Since(s.start)
	idle, quiet := now-time.Duration(s.heard.Load()), now-time.Duration(s.out.sent.Load())
	// A machine that slept has a wall clock ahead of its timers; the peer has given the link up meanwhile.
	slept := time.Now().Round(0).Sub(k.wall) > 4*interval
	k.wall = time.Now().Round(0)
	switch {
	case idle >= 2*interval, slept && idle >= interval:
		s.Close(ErrSilent)
	case idle >= after:
		s.ping(now)
		k.timer.Reset(min(after, 2*interval-idle))
	case quiet >= after:
		s.ping(now)
		k.timer.Reset(after - idle)
	default:
		k.timer.Reset(after - max(idle, quiet))
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
