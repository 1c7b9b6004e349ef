package tls

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	identityBudget = 10  // new hostnames of one identity in an hour
	serverBudget   = 100 // of all
	maxIdentities  = 10_000
)

// A Budget bounds how many new hostnames are taken on, so that nobody uses up what an authority allows this server. Its
// zero value is not valid; see NewBudget.
type Budget struct {
	mu         sync.Mutex
	all        *rate.Limiter
	identities map[string]*rate.Limiter
	known      map[string]time.Time // hostnames that were paid for, and when they were last asked for
}

// NewBudget returns a full budget: 10 new hostnames an hour for each identity, 100 for all together.
func NewBudget() *Budget {
	return &Budget{
		all:        hourly(serverBudget),
		identities: make(map[string]*rate.Limiter),
		known:      make(map[string]time.Time),
	}
}

func hourly(n int) *rate.Limiter { return rate.NewLimiter(rate.Every(time.Hour/time.Duration(n)), n) }

// overBudget says that too much was asked for; it passes.
type overBudget struct{ text string }

func (e overBudget) Error() string { return e.text }
func (overBudget) Temporary() bool { return true }

// Spend takes hostname on for an identity. One that was taken on before costs nothing, and a refusal neither. The error has
// a method Temporary. After a restart all hostnames are new: a caller who has their certificates need not ask.
func (b *Budget) Spend(identity, hostname string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := identity + " " + hostname
	if _, ok := b.known[key]; ok {
		b.known[key] = time.Now()
		return nil
	}
	if len(b.identities) >= maxIdentities || len(b.known) >= maxIdentities {
		b.forget()
	}
	l := b.identities[identity]
	if l == nil {
		l = hourly(identityBudget)
		b.identities[identity] = l
	}
	if l.Tokens() < 1 {
		return overBudget{fmt.Sprintf("%s: this identity asks for more than %d new hostnames an hour", hostname, identityBudget)}
	}
	if !b.all.Allow() {
		return overBudget{fmt.Sprintf("%s: this server takes on %d new hostnames an hour, and they are used up", hostname, serverBudget)}
	}
	l.Allow() // there is one, and only the holder of mu takes any
	b.known[key] = time.Now()
	return nil
}

// forget drops identities whose budget is full again and hostnames that nobody asked for during a day; all, if that is
// not enough: the server's own budget still holds.
func (b *Budget) forget() {
	for id, l := range b.identities {
		if l.Tokens() >= identityBudget {
			delete(b.identities, id)
		}
	}
	for key, at := range b.known {
		if time.Since(at) > 24*time.Hour {
			delete(b.known, key)
		}
	}
	if len(b.identities) >= maxIdentities {
		clear(b.identities)
	}
	if len(b.known) >= maxIdentities {
		clear(b.known)
	}
}
