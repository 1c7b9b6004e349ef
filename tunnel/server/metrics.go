package server

import (
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/harp-tunnel/harp/messages"
	"github.com/prometheus/client_golang/prometheus"
)

// The limits that harp_limits_total tells apart.
const (
	limitRate          = "rate"          // requests per second of a hostname
	limitVisitorRate   = "visitor-rate"  // requests per second of a visitor
	limitMaxBody       = "max-body"      // bytes of a body or WebSocket message
	limitMaxStreams    = "max-streams"   // open at once on a link
	limitHead          = "head"          // bytes of a request head
	limitPendingLinks  = "pending-links" // links that have not registered yet
	limitRegistrations = "registrations" // of a link
)

// registeredOK is the result of a registration that was not refused.
const registeredOK = "ok"

// metrics counts what the edge does. No label takes its values from the network, so the number of series is fixed.
// Methods may be called from any goroutine; those of a nil metrics do nothing.
type metrics struct {
	links         prometheus.Gauge
	registrations prometheus.Gauge
	streams       prometheus.Gauge
	duration      prometheus.Histogram
	bytesIn       prometheus.Counter
	bytesOut      prometheus.Counter
	registered    counterTable
	errors        counterTable
	limits        counterTable

	requests *prometheus.CounterVec
	byStatus [600]atomic.Pointer[prometheus.Counter] // of requests, filled when first used; 0 is "other"
}

// newMetrics registers everything at reg. On an error, of names that are taken, it leaves reg as it was.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	registered := vec("harp_registrations_total", "Registrations asked for, by result.", "result")
	errors := vec("harp_errors_total", "Answers of the edge's own, by Harp-Error code.", "code")
	bytes := vec("harp_visitor_bytes_total", "Bytes of bodies and upgraded connections from (in) and to (out) visitors.",
		"direction")
	limits := vec("harp_limits_total", "How often something was refused or cut by a limit.", "limit")
	m := &metrics{
		links:         gauge("harp_links", "Links of agents that are up."),
		registrations: gauge("harp_registrations", "Registrations in force."),
		streams:       gauge("harp_streams", "Requests and upgraded connections under way."),
		requests:      vec("harp_requests_total", "Requests of visitors that were answered, by status.", "code"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "harp_request_duration_seconds",
			Help:    "Time from a request to the head of its response.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		bytesIn:    bytes.WithLabelValues("in"),
		bytesOut:   bytes.WithLabelValues("out"),
		registered: newCounterTable(registered, registrationResults()),
		errors:     newCounterTable(errors, errorCodes()),
		limits: newCounterTable(limits, []string{limitRate, limitVisitorRate, limitMaxBody, limitMaxStreams,
			limitHead, limitPendingLinks, limitRegistrations}),
	}
	all := []prometheus.Collector{m.links, m.registrations, m.streams, m.requests, m.duration,
		registered, errors, bytes, limits}
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			for _, done := range all[:i] {
				reg.Unregister(done)
			}
			return nil, err // it names the metric
		}
	}
	return m, nil
}

// errorCodes returns the codes of all errors that the edge answers with.
func errorCodes() []string {
	all := [...]visitorError{noTunnelError(), agentAwayError(), upstreamUnreachableError(""), upstreamBrokeError(""),
		responseTooLargeError(0), requestTooLargeError(0), rateLimitedError(), timeoutError(0), headTooLargeError(),
		busyError(), linkLostError(), badRequestError(""), connectRefusedError()}
	codes := make([]string, len(all))
	for i, e := range all {
		codes[i] = e.Code
	}
	return codes
}

func registrationResults() []string {
	return []string{registeredOK, messages.RefuseMalformed, messages.RefuseSignature, messages.RefuseChallenge,
		messages.RefuseAudience, messages.RefuseNotAuthorized, messages.RefuseUnsupported, messages.RefuseHostname, messages.RefuseLimit,
		messages.RefuseDraining}
}

// link counts n links more, or fewer if n is negative.
func (m *metrics) link(n int) {
	if m != nil {
		m.links.Add(float64(n))
	}
}

// registration counts n registrations in force more, or fewer if n is negative.
func (m *metrics) registration(n int) {
	if m != nil {
		m.registrations.Add(float64(n))
	}
}

// stream counts n streams more, or fewer if n is negative.
func (m *metrics) stream(n int) {
	if m != nil {
		m.streams.Add(float64(n))
	}
}

// registrationResult counts the answer to one RegistrationRequest: registeredOK or a messages.Refuse constant.
func (m *metrics) registrationResult(result string) {
	if m != nil {
		m.registered.inc(result)
	}
}

// request counts an answered request: its status, whoever gave it, and the seconds until the response head.
func (m *metrics) request(status int, seconds float64) {
	if m == nil {
		return
	}
	m.status(status).Inc()
	m.duration.Observe(seconds)
}

// status returns the counter of a status: its own from 100 to 599, else that of "other".
func (m *metrics) status(status int) prometheus.Counter {
	if status < http.StatusContinue || status >= len(m.byStatus) {
		status = 0
	}
	if c := m.byStatus[status].Load(); c != nil {
		return *c
	}
	label := "other"
	if status != 0 {
		label = strconv.Itoa(status)
	}
	c := m.requests.WithLabelValues(label)
	m.byStatus[status].Store(&c)
	return c
}

// failure counts an answer of the edge's own by its visitorError.Code.
func (m *metrics) failure(code string) {
	if m != nil {
		m.errors.inc(code)
	}
}

// limit counts that one of the limit constants took effect.
func (m *metrics) limit(name string) {
	if m != nil {
		m.limits.inc(name)
	}
}

// bytes counts what visitors have sent (in) and been sent (out), in bytes. Negative counts are ignored.
func (m *metrics) bytes(in, out int64) {
	if m == nil {
		return
	}
	if in > 0 {
		m.bytesIn.Add(float64(in))
	}
	if out > 0 {
		m.bytesOut.Add(float64(out))
	}
}

// A counterTable is a counter for each of a few names, and one for "other". It does not change once made.
type counterTable struct {
	names    []string
	counters []prometheus.Counter // one more than names: the last is "other"
}

func newCounterTable(vec *prometheus.CounterVec, names []string) counterTable {
	t := counterTable{names: names}
	for _, name := range append(slices.Clone(names), "other") {
		t.counters = append(t.counters, vec.WithLabelValues(name))
	}
	return t
}

func (t counterTable) inc(name string) {
	i := slices.Index(t.names, name)
	if i < 0 {
		i = len(t.names)
	}
	t.counters[i].Inc()
}
