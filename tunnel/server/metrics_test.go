package server

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func newTestMetrics(t testing.TB) (*metrics, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	m, err := newMetrics(reg)
	if err != nil {
		t.Fatalf("newMetrics: %v", err)
	}
	return m, reg
}

func TestMetricsCount(t *testing.T) {
	m, reg := newTestMetrics(t)
	m.link(2)
	m.link(-1)
	m.registration(3)
	m.stream(1)
	m.registrationResult(registeredOK)
	m.registrationResult("not-authorized")
	m.registrationResult("made up by an agent")
	m.request(200, 0.002)
	m.request(200, 0.02)
	m.request(599, 100)
	for _, status := range []int{-1, 0, 99, 600, 1 << 40} {
		m.request(status, 0)
	}
	m.failure("no-tunnel")
	m.failure("unheard-of")
	m.limit(limitRate)
	m.limit("unheard-of")
	m.bytes(10, 20)
	m.bytes(-5, 1)
	want := map[string]float64{
		`harp_links`: 1, `harp_registrations`: 3, `harp_streams`: 1,
		`harp_registrations_total{result=ok}`: 1, `harp_registrations_total{result=not-authorized}`: 1,
		`harp_registrations_total{result=other}`: 1,
		`harp_requests_total{code=200}`:          2, `harp_requests_total{code=599}`: 1, `harp_requests_total{code=other}`: 5,
		`harp_errors_total{code=no-tunnel}`: 1, `harp_errors_total{code=other}`: 1, `harp_errors_total{code=timeout}`: 0,
		`harp_limits_total{limit=rate}`: 1, `harp_limits_total{limit=other}`: 1, `harp_limits_total{limit=head}`: 0,
		`harp_visitor_bytes_total{direction=in}`: 10, `harp_visitor_bytes_total{direction=out}`: 21,
		`harp_request_duration_seconds`: 8, // observations
	}
	got := gather(t, reg)
	for series, value := range want {
		if v, ok := got[series]; !ok || v != value {
			t.Errorf("%s is %v (there: %v), want %v", series, v, ok, value)
		}
	}
}

// gather returns the value of every series; for a histogram that is the number of observations.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "{" + l.GetName() + "=" + l.GetValue() + "}"
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

func TestMetricsKnowEveryErrorCode(t *testing.T) {
	codes := strings.Join(errorCodes(), " ")
	want := "no-tunnel agent-away upstream-unreachable upstream-broke response-too-large request-too-large rate-limited " +
		"timeout head-too-large busy link-lost bad-request method-not-allowed"
	if codes != want {
		t.Errorf("codes %s, want %s", codes, want)
	}
}

func TestMetricsAreWellNamed(t *testing.T) {
	m, reg := newTestMetrics(t)
	m.request(200, 1)
	families, err := reg.Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

func TestMetricsSeriesAreBounded(t *testing.T) {
	m, reg := newTestMetrics(t)
	for status := range 2000 {
		m.request(status-500, 0)
	}
	n := 0
	for name := range gather(t, reg) {
		if strings.HasPrefix(name, "harp_requests_total") {
			n++
		}
	}
	if n != 501 {
		t.Errorf("%d series of statuses, want 100..599 and other", n)
	}
}

func TestMetricsTwiceInOneRegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	taken := prometheus.NewGauge(prometheus.GaugeOpts{Name: "harp_streams", Help: "Requests and upgraded connections under way."})
	reg.MustRegister(taken)
	if _, err := newMetrics(reg); err == nil {
		t.Fatal("a name was taken, and newMetrics did not mind")
	}
	reg.Unregister(taken)
	if _, err := newMetrics(reg); err != nil {
		t.Errorf("the failed attempt left something behind: %v", err)
	}
}

func TestNilMetrics(t *testing.T) {
	var m *metrics
	m.link(1)
	m.registration(1)
	m.stream(1)
	m.registrationResult(registeredOK)
	m.request(200, 1)
	m.failure("x")
	m.limit(limitHead)
	m.bytes(1, 1)
}

// observeOne is what one served request costs.
func observeOne(m *metrics) {
	m.stream(1)
	m.request(200, 0.012)
	m.bytes(100, 1000)
	m.stream(-1)
}

func TestMetricsAllocateNothing(t *testing.T) {
	m, _ := newTestMetrics(t)
	if n := testing.AllocsPerRun(100, func() { observeOne(m); m.failure("busy"); m.limit(limitHead) }); n != 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

func BenchmarkMetricsRequest(b *testing.B) {
	m, _ := newTestMetrics(b)
	b.ReportAllocs()
	for b.Loop() {
		m.request(200, 0.012)
	}
}

func BenchmarkMetricsWholeRequest(b *testing.B) {
	m, _ := newTestMetrics(b)
	b.ReportAllocs()
	for b.Loop() {
		observeOne(m)
	}
}
