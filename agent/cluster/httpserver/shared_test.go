package httpserver

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever asks while an answer is made gets the next, which all who wait share: made after a
// rest, whoever of them is still there.
func TestSharedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 100 * time.Millisecond
		made, began := 0, time.Now()
		s := NewShared(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			made++
			w.Header().Set("Content-Type", "text/x")
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprint(w, made, r.Header.Get("Accept-Encoding"), r.Context().Err())
			time.Sleep(takes)
		}))
		var asking sync.WaitGroup
		ask := func(at time.Duration, want string, after time.Duration) {
			asking.Go(func() {
				time.Sleep(at)
				r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
				r.Header.Set("Accept-Encoding", "gzip")
				w := httptest.NewRecorder()
				s.ServeHTTP(w, r)
				if got := fmt.Sprint(w.Code, " ", w.Header().Get("Content-Type"), " ", w.Body); got != want || time.Since(began) != after {
					t.Errorf("asked after %s: %s after %s, want %s after %s", at, got, time.Since(began), want, after)
				}
			})
		}
		ask(0, "418 text/x 1<nil>", takes)
		for i := range 200 {
			ask(time.Duration(1+i)*takes/300, "418 text/x 2<nil>", 3*takes)
		}
		ask(5*takes/2, "418 text/x 3<nil>", 5*takes) // while the second is made
		ask(20*takes, "418 text/x 4<nil>", 21*takes) // nobody has asked for long
		asking.Wait()
		if made != 4 {
			t.Errorf("%d answers were made", made)
		}
	})
}
