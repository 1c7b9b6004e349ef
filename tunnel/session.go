// Package tunnel is what both ends of a link share: a Session carries many HTTP exchanges over one WebSocket.
// At the edge it takes requests (RoundTrip), at the agent it feeds an http.Handler.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

var (
	// ErrClosed means that the link is gone.
	ErrClosed = errors.New("tunnel: link closed")
	// ErrSilent is the cause of death of a link on which nothing was heard for two ping intervals.
	ErrSilent = errors.New("tunnel: peer is silent")
	// ErrProtocol is the cause of death of a link whose peer broke the protocol.
	ErrProtocol = errors.New("tunnel: protocol error")
	// ErrBusy means that as many streams are open on the link as may be.
	ErrBusy = errors.New("tunnel: too many streams")
	// ErrDraining means that the link takes no new streams, because it is about to end.
	ErrDraining = errors.New("tunnel: link is draining")
)

// The defaults of Config.
const (
	DefaultPingInterval = 10 * time.Second
	DefaultMaxStreams   = 1000
)

// Config says how a Session behaves. The zero value is an edge with the defaults.
type Config struct {
	// Handler returns what serves a registration's requests, nil if the registration is unknown. It is set at the
	// agent; at the edge it is nil, and only the edge opens streams.
	Handler func(registration uint32) http.Handler
	// TLSHandler returns what takes a visitor's TLS connection, unopened; nil if the registration is unknown. What it
	// returns closes the connection and then returns. If TLSHandler itself is nil the agent ends no TLS.
	TLSHandler func(messages.TLSRequest) func(net.Conn)
	// MaxStreams is how many streams may be open at once; zero means 1000. Further ones are refused. At the agent it is also
	// how many handlers may run, of which some may outlive their streams.
	//
	// Whatever the peer sends and nobody reads, a stream takes at most 640 KiB of memory, 3 KiB when it only waits:
	// 256 KiB of its body, a head and trailers of at most 192 KiB, and as much again for the fields in Go's form. To
	// that come at most 32 MiB for the larger windows of fast transfers, and 16 MiB for what a peer that does not read
	// has asked for.
	MaxStreams int
	// PingInterval is the silence, in either direction, after which a ping is sent, at the agent a tenth later; when nothing
	// was heard for twice as long, the link is dead. Zero means 10 s.
	PingInterval time.Duration
	// OnText gets every text message, which it must not keep. It is called by the reader of the link and must not wait; an
	// error ends the link.
	OnText func(text []byte) error
	// OnDisconnect gets the peer's Disconnect messages. It is called by the reader of the link and must not wait.
	OnDisconnect func(messages.Disconnect)
	// Logger gets what an operator may want to know; nil discards.
	Logger *slog.Logger
}

// A Session carries many streams over one link. Methods may be called from any goroutine.
type Session struct {
	conn   Conn   // read by readLoop only, written by out only
	config Config // with its defaults; not changed
	out    *outbox
	ended  chan struct{} // closed by fail when the link is dead; err is set before
	done   chan struct{} // closed by finish when the goroutines and handlers have ended
	heard  atomic.Int64  // when something was last read, in nanoseconds after start
	start  time.Time
	grown  atomic.Int64 // bytes by which windows have grown, of windowBudget
	trips  roundTrips

	newest    atomic.Uint32 // is lastID, for windows
	transfers atomic.Int32  // open streams that gave credit

	woken []*stream // for which the batch that is being read had something; used by readLoop only

	onEnd     func(error) // set by Start, called by finish; may be nil
	keepalive keepalive
	reader    sync.WaitGroup // readLoop
	handlers  sync.WaitGroup // the agent's running handlers

	mu       sync.Mutex // guards the fields below; taken after outbox.mu, before stream.mu
	streams  map[uint32]*stream
	running  int            // handlers; some may have outlived their streams
	resting  restingWorkers // wait for a handler to run
	lastID   uint32         // the newest stream
	draining bool           // no new streams
	empty    chan struct{}  // closed when draining has left no stream; nil before draining
	started  bool           // by Start, whose goroutines are there
	closing  error          // the first reason that Close was given: finish runs, once started
	err      error          // first cause of death
}

// NewSession returns a session over conn. It does nothing until Run or Start.
func NewSession(conn Conn, config Config) *Session {
	if config.MaxStreams <= 0 {
		config.MaxStreams = DefaultMaxStreams
	}
	if config.PingInterval <= 0 {
		config.PingInterval = DefaultPingInterval
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Session{
		conn: conn, config: config,
		ended: make(chan struct{}), done: make(chan struct{}), start: time.Now(),
		streams: make(map[uint32]*stream),
	}
	s.out = newOutbox(conn, s.Close)
	s.out.start = s.start // one clock: keepalive compares
	return s
}

// Run carries the link until it ends, for which it returns the reason: ctx's cause, ErrSilent, an error that wraps
// ErrProtocol, or one of the connection. It closes the connection and waits for the handlers. Call it once.
func (s *Session) Run(ctx context.Context) error {
	if ctx.Err() != nil {
		s.Close(context.Cause(ctx))
	}
	stop := context.AfterFunc(ctx, func() { s.Close(context.Cause(ctx)) })
	defer stop()
	s.Start(nil)
	<-s.done
	return s.err
}

// Start is Run without ctx and without a goroutine that waits: ended, which may be nil, is called with the reason after
// Done, from a goroutine of the session. Call one of the two, once.
func (s *Session) Start(ended func(reason error)) {
	s.onEnd = ended
	s.heard.Store(int64(time.Since(s.start))) // the link may have waited for Start
	s.reader.Go(s.readLoop)                   // ends when the connection closes
	s.out.begin()
	s.keepalive.start(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = true
	if s.closing != nil {
		go s.finish() // ends when the rest has ended
	}
}

// Close ends the link for the given reason, nil for ErrClosed, after what was sent before. It does not wait for the end.
func (s *Session) Close(reason error) {
	if reason == nil {
		reason = ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing != nil {
		return
	}
	s.closing = reason
	if s.started {
		go s.finish() // ends when the rest has ended
	}
}

// finish ends what Start has begun, for the reason that Close was given.
func (s *Session) finish() {
	s.keepalive.stop()
	s.fail(s.closing)
	select {
	case <-s.out.written:
	case <-time.After(time.Second): // the last words have waited long enough
	}
	_ = s.conn.Close()
	s.reader.Wait()
	<-s.out.written
	s.endWorkers()
	s.handlers.Wait()
	close(s.done)
	if s.onEnd != nil {
		s.onEnd(s.err)
	}
}

// Ended is closed when the link is dead. Done may take longer: it waits for handlers.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// Err returns why the link died, nil before.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Done is closed when the goroutines and handlers have ended; Run returns then.
func (s *Session) Done() <-chan struct{} { return s.done }

// fail sets the cause of death, ends every stream and lets the writer send what it has.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	s.draining = true
	streams := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	if errors.Is(err, ErrProtocol) {
		s.Disconnect(messages.Disconnect{Code: messages.DisconnectProtocol, Reason: err.Error()})
	}
	gone := fmt.Errorf("%w: %w", ErrClosed, err)
	s.out.close(gone)
	for _, st := range streams {
		st.shut(gone, false)
	}
	close(s.ended)
}

// Disconnect tells the peer that the link, or one registration, is to end. For the whole link it also stops
// taking new streams here.
func (s *Session) Disconnect(d messages.Disconnect) {
	if d.Registration == 0 {
		s.drain()
	}
	_ = s.out.control(func(b []byte) []byte { return messages.AppendDisconnect(b, d) })
}

// SendText sends a text message, before any stream that is opened later. The session keeps text.
func (s *Session) SendText(text []byte) error { return s.out.text(text) }

// drain lets no new stream in and returns a channel that is closed when none is left.
func (s *Session) drain() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	if s.empty == nil {
		s.empty = make(chan struct{})
		if len(s.streams) == 0 {
			close(s.empty)
		}
	}
	return s.empty
}

// Drain lets no new stream in and waits until none is left, the link is dead, or ctx ends.
func (s *Session) Drain(ctx context.Context) error {
	select {
	case <-s.drain():
		return nil
	case <-s.ended:
		return s.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Streams returns how many streams are open.
func (s *Session) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// isEdge reports whether this end opens streams.
func (s *Session) isEdge() bool { return s.config.Handler == nil }

func (s *Session) lookup(id uint32) (*stream, uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id], s.lastID
}

func (s *Session) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.removed {
		return
	}
	st.removed = true
	delete(s.streams, st.id)
	s.out.streams.Store(int32(len(s.streams)))
	s.releaseWindow(&st.recv)
	if s.empty != nil && len(s.streams) == 0 {
		close(s.empty)
	}
}
