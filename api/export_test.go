package api

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-dr/lockstep/api/identity"
	"github.com/lockstep-dr/lockstep/api/rest"
)

// AllRoutes are the routes of a server, whose handlers nobody calls.
func AllRoutes(users *identity.Service) []rest.Route {
	s := &server{cfg: Config{Identity: users, Registry: prometheus.NewRegistry()}}
	return s.routes()
}

// AddRoute adds a route as New does.
func AddRoute(rt rest.Route) {
	s := &server{log: slog.New(slog.DiscardHandler), mux: http.NewServeMux()}
	s.add([]rest.Route{rt})
}
