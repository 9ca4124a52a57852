defmodule SupervisedConsumer.MixProject do
  use Mix.Project

  def project do
    [
      app: :supervised_consumer,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [{:barytherium, path: "../.."}]
    ]
  end

  def application do
    [mod: {SupervisedConsumer.Application, []}, extra_applications: [:logger]]
  end
end
