package server

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Status is what the edge carries at the moment.
type Status struct {
	Domain  string       `json:"domain"`
	Started time.Time    `json:"started"`
	Links   []LinkStatus `json:"links"` // oldest first
}

// LinkStatus is one agent's link.
type LinkStatus struct {
	Agent         string               `json:"agent"` // its address
	Since         time.Time            `json:"since"`
	Streams       int                  `json:"streams"`  // open now
	Requests      uint64               `json:"requests"` // so far
	Registrations []RegistrationStatus `json:"registrations"`
}

// RegistrationStatus is one name that a link serves.
type RegistrationStatus struct {
	Hostname string    `json:"hostname"`
	Path     string    `json:"path,omitempty"`
	Session  string    `json:"session,omitempty"`
	Mode     string    `json:"mode"`
	Identity string    `json:"identity"` // thumbprint
	Since    time.Time `json:"since"`
}

// Status returns a picture of all links that have registered.
func (s *Server) Status() Status {
	s.mu.Lock()
	links := make([]*link, 0, len(s.links))
	for l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	status := Status{Domain: s.options.Domain, Started: s.started, Links: []LinkStatus{}}
	for _, l := range links {
		if st := l.status(); len(st.Registrations) > 0 {
			status.Links = append(status.Links, st)
		}
	}
	slices.SortFunc(status.Links, func(a, b LinkStatus) int { return a.Since.Compare(b.Since) })
	return status
}

func (l *link) status() LinkStatus {
	st := LinkStatus{
		Agent: l.visitor.String(), Since: l.since, Streams: l.session.Streams(), Requests: l.requests.Load(),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.registrations {
		st.Registrations = append(st.Registrations, RegistrationStatus{
			Hostname: r.label + "." + l.server.options.Domain, Path: r.path, Session: r.session, Mode: r.mode,
			Identity: r.thumbprint.String(), Since: r.since,
		})
	}
	slices.SortFunc(st.Registrations, func(a, b RegistrationStatus) int { return strings.Compare(a.Hostname+a.Path, b.Hostname+b.Path) })
	return st
}

// Admin returns the pages for the operator: /healthz, /readyz, /metrics, /status and pprof. They are not for the
// public; hosts are names, beside localhost and addresses, by which they may be asked for.
func (s *Server) Admin(hosts ...string) http.Handler {
	return adminHandler(adminView{
		Ready: func() error {
			if s.stopping() {
				return errors.New("draining")
			}
			return nil
		},
		Status:   func() any { return s.Status() },
		Gatherer: s.options.Metrics,
		Hosts:    hosts,
	})
}
