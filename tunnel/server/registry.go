package server

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/identity"
)

// maxRemembered bounds the labels that are remembered after their agent has gone.
const maxRemembered = 100_000

// A registration is one path of one label that a link serves. It is not changed once it is in the registry.
type registration struct {
	link       *link
	id         uint32 // on the link
	label      string
	path       string // "" or "/prefix"
	session    string
	mode       string
	instance   string
	thumbprint identity.Thumbprint
	hostnames  []string // further names, proven
	endToEnd   bool     // the agent ends TLS
	since      time.Time
}

// standby reports whether the registration serves only while no other is there.
func (r *registration) standby() bool { return r.mode == identity.ModeStandby }

// A registry knows which registrations serve which label and path.
type registry struct {
	mu    sync.RWMutex
	hosts map[string][]*route // by label; longest path first
	seen  map[string]bool     // labels that were here and have no route now, at most maxRemembered; whether end to end
}

// A route is one path of a label, with everyone who serves it.
type route struct {
	path    string
	serving []*registration // oldest first; replaced, not changed, so that readers may keep it
}

func newRegistry() *registry {
	return &registry{hosts: make(map[string][]*route), seen: make(map[string]bool)}
}

// lookup returns who serves the target, and whether the label is one that was served here before. The slice must not
// be changed.
func (g *registry) lookup(label, target string) (serving []*registration, known bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, rt := range g.hosts[label] {
		if rt.matches(target) {
			return rt.serving, true
		}
	}
	_, known = g.seen[label]
	return nil, known
}

// endToEnd returns who serves the label with TLS of their own. is says that TLS for the label must not end here: it is
// served so, or was when it was last served.
func (g *registry) endToEnd(label string) (serving []*registration, is bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, rt := range g.hosts[label] {
		for _, r := range rt.serving {
			if r.endToEnd {
				serving = append(serving, r)
			}
		}
	}
	return serving, len(serving) > 0 || g.seen[label]
}

// matches reports whether target lies below the route's path, segment by segment and byte for byte.
func (rt *route) matches(target string) bool {
	rest, ok := strings.CutPrefix(target, rt.path)
	return ok && (rt.path == "" || rest == "" || rest[0] == '/' || rest[0] == '?')
}

// errMixed is why a registration cannot join others: TLS for a name ends either here or at all of its agents.
var errMixed = errors.New("agents that serve this name now do not agree with this one on --end-to-end")

// add puts r in and takes out those that it replaces, which are returned: in takeover mode all but standbys, in the
// others an earlier registration of the same instance. One that takes over, and ends TLS elsewhere than those that are
// there, replaces them all, whatever their path; in the other modes the error is errMixed then. announce runs before r can be
// found.
func (g *registry) add(r *registration, announce func() error) (replaced []*registration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.mode != identity.ModeTakeover && g.mixedLocked(r) {
		return nil, errMixed
	}
	if err := announce(); err != nil {
		return nil, err
	}
	replaced = g.displaceLocked(r)
	routes := g.hosts[r.label]
	i := slices.IndexFunc(routes, func(rt *route) bool { return rt.path == r.path })
	if i < 0 {
		routes = append(slices.Clone(routes), &route{path: r.path})
		slices.SortStableFunc(routes, func(a, b *route) int { return len(b.path) - len(a.path) })
		g.hosts[r.label] = routes
		i = slices.IndexFunc(routes, func(rt *route) bool { return rt.path == r.path })
	}
	var keep []*registration
	for _, old := range routes[i].serving {
		same := r.instance != "" && old.instance == r.instance
		if same || r.mode == identity.ModeTakeover && !old.standby() {
			replaced = append(replaced, old)
		} else {
			keep = append(keep, old)
		}
	}
	routes[i].serving = append(keep, r)
	delete(g.seen, r.label)
	return replaced, nil
}

// mixedLocked reports whether another agent serves the label with its TLS ended elsewhere than r's.
func (g *registry) mixedLocked(r *registration) bool {
	for _, rt := range g.hosts[r.label] {
		for _, old := range rt.serving {
			if old.endToEnd != r.endToEnd && (r.instance == "" || old.instance != r.instance) {
				return true
			}
		}
	}
	return false
}

// displaceLocked takes out all of r's label whose TLS ends elsewhere than r's. Else TLS for the name would end here for one
// path, and the visitors of another would trust that it does not.
func (g *registry) displaceLocked(r *registration) (displaced []*registration) {
	routes := make([]*route, 0, len(g.hosts[r.label]))
	for _, rt := range g.hosts[r.label] {
		var keep []*registration
		for _, old := range rt.serving {
			if old.endToEnd == r.endToEnd {
				keep = append(keep, old)
			} else {
				displaced = append(displaced, old)
			}
		}
		if len(keep) > 0 {
			routes = append(routes, &route{path: rt.path, serving: keep})
		}
	}
	if len(displaced) > 0 {
		g.hosts[r.label] = routes
	}
	return displaced
}

// remove takes r out and reports whether it was still in. What has replaced it stays.
func (g *registry) remove(r *registration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	routes := g.hosts[r.label]
	i := slices.IndexFunc(routes, func(rt *route) bool { return rt.path == r.path })
	if i < 0 || !slices.Contains(routes[i].serving, r) {
		return false
	}
	routes[i].serving = slices.DeleteFunc(slices.Clone(routes[i].serving), func(o *registration) bool { return o == r })
	if len(routes[i].serving) > 0 {
		return true
	}
	if routes = slices.Delete(slices.Clone(routes), i, i+1); len(routes) > 0 {
		g.hosts[r.label] = routes
		return true
	}
	delete(g.hosts, r.label)
	for label := range g.seen {
		if len(g.seen) < maxRemembered {
			break
		}
		delete(g.seen, label)
	}
	g.seen[r.label] = r.endToEnd
	return true
}

// inTurn orders candidates for one request: the least busy first, standbys last.
func inTurn(serving []*registration) []*registration {
	if len(serving) < 2 {
		return serving
	}
	type candidate struct {
		*registration
		busy int
	}
	all := make([]candidate, len(serving))
	for i, r := range serving {
		all[i] = candidate{r, r.link.session.Streams()}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		if a.standby() != b.standby() {
			if a.standby() {
				return 1
			}
			return -1
		}
		if a.busy != b.busy {
			return a.busy - b.busy
		}
		return a.link.served(b.link)
	})
	order := make([]*registration, len(all))
	for i, c := range all {
		order[i] = c.registration
	}
	return order
}
