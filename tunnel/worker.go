package tunnel

import "time"

const (
	// keptWorkers is how many workers of a link may wait for a request.
	keptWorkers = 64
	// workerRest is how long a worker waits that is not needed: at least once this, at most twice.
	workerRest = time.Second
)

// A worker is a goroutine of the agent that runs handlers, one after the other. A goroutine for each request would
// have to grow its stack for each, which took 5 % of the agent's CPU time.
type worker struct {
	next chan *service // holds what is to be run next; closed when the worker is to end
}

// restingWorkers are a link's workers that wait for a request. Session.mu guards them.
type restingWorkers struct {
	idle  []*worker   // at most keptWorkers; the one that worked last is the last, and the next to be used
	least int         // how many idle had when they were fewest, since timer began to run
	timer *time.Timer // runs dismiss while there are any; else nil
	ended bool        // none may wait any more
}

// employ accepts x and has a worker run its handler, if there is room.
func (s *Session) employ(x *service) bool {
	s.mu.Lock()
	if !s.acceptLocked(&x.stream) {
		s.mu.Unlock()
		return false
	}
	w := s.resting.takeLocked()
	s.mu.Unlock()
	if w != nil {
		w.next <- x // has room: nobody else has taken w
		return true
	}
	s.handlers.Add(1)
	go s.work(x) // ends when it is not needed, or with the link and its handler, whose context ends with the stream
	return true
}

// work runs x, and then what it is handed, until it is no longer needed.
func (s *Session) work(x *service) {
	defer s.handlers.Done()
	w := &worker{next: make(chan *service, 1)}
	for ; x != nil; x = s.rest(w) {
		x.run()
	}
}

// rest waits for a request, and returns nil if the worker has to end.
func (s *Session) rest(w *worker) *service {
	s.mu.Lock()
	r := &s.resting
	if r.ended || len(r.idle) == keptWorkers {
		s.mu.Unlock()
		return nil
	}
	r.idle = append(r.idle, w)
	if r.timer == nil {
		r.least = 0
		r.timer = time.AfterFunc(workerRest, s.dismiss)
	}
	s.mu.Unlock()
	return <-w.next
}

// takeLocked returns the worker that worked last, nil if none waits. The caller gives it a request.
func (r *restingWorkers) takeLocked() *worker {
	n := len(r.idle) - 1
	if n < 0 {
		return nil
	}
	w := r.idle[n]
	r.idle[n] = nil
	r.idle = r.idle[:n]
	r.least = min(r.least, n)
	return w
}

// dismiss ends the workers that were not needed since it ran last.
func (s *Session) dismiss() {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.resting
	for _, w := range r.idle[:r.least] {
		close(w.next)
	}
	kept := copy(r.idle, r.idle[r.least:])
	clear(r.idle[kept:])
	r.idle, r.least, r.timer = r.idle[:kept], kept, nil
	if kept > 0 {
		r.timer = time.AfterFunc(workerRest, s.dismiss)
	} else {
		r.idle = nil
	}
}

// endWorkers ends the workers that wait, and those that would begin to.
func (s *Session) endWorkers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.resting
	for _, w := range r.idle {
		close(w.next)
	}
	if r.timer != nil {
		r.timer.Stop()
	}
	*r = restingWorkers{ended: true}
}
