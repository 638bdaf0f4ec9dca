module github.com/k3s-autoscaler/k3s-autoscaler/test/env/runcshim

go 1.26.0
