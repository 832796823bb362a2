package api

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lictor-ha/lictor/agent/config"
)

// What a health check costs beside its connection.
func BenchmarkHealthCheck(b *testing.B) {
	s, err := NewServer(config.RestAPI{Listen: "127.0.0.1:0"}, fixed(primaryState(time.Now().Add(time.Hour))), zerolog.Nop())
	if err != nil {
		b.Fatal(err)
	}
	for _, method := range []string{http.MethodGet, http.MethodOptions} {
		b.Run(method, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, "/primary", nil))
			}
		})
	}
}
