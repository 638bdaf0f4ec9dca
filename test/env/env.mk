# The environment of the end-to-end tests, by hand.
TESTENV := go run ./test/env/cmd/testenv

.PHONY: env-up
env-up: ## Bring the test environment up and print exports for a shell
	@$(TESTENV) up

.PHONY: env-down
env-down: ## End the test environment, also what a crashed run left
	@$(TESTENV) down

.PHONY: env-test
env-test: ## Unit tests of the environment's own modules (the agent stand-in, the runtime shim)
	cd test/env/runcshim && GOWORK=off go test ./...
	cd test/env/k8s && GOWORK=off CGO_ENABLED=0 go test ./agent/...
