module github.com/k3s-autoscaler/k3s-autoscaler/internal/tools

go 1.26.0

tool github.com/golangci/golangci-lint/v2/cmd/golangci-lint

require github.com/golangci/golangci-lint/v2 v2.15.0 // indirect
