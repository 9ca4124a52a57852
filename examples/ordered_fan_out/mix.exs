defmodule OrderedFanOut.MixProject do
  use Mix.Project

  def project do
    [
      app: :ordered_fan_out,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [{:barytherium, path: "../.."}]
    ]
  end

  def application do
    [mod: {OrderedFanOut.Application, []}, extra_applications: [:logger]]
  end
end
