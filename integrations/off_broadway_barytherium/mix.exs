defmodule OffBroadway.Barytherium.MixProject do
  use Mix.Project

  def project do
    [
      app: :off_broadway_barytherium,
      version: "1.0.0",
      elixir: "~> 1.14",
      start_permanent: Mix.env() == :prod,
      description: "A Broadway producer for STOMP brokers, on Barytherium",
      package: [licenses: ["MIT"], files: ~w(lib mix.exs README.md .formatter.exs)],
      deps: [
        {:broadway, "~> 1.0"},
        {:barytherium, path: "../.."}
      ]
    ]
  end

  def application, do: [extra_applications: [:logger]]
end
