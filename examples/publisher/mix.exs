defmodule Publisher.MixProject do
  use Mix.Project

  def project do
    [
      app: :publisher,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [{:barytherium, path: "../.."}]
    ]
  end

  def application do
    [mod: {Publisher.Application, []}, extra_applications: [:logger]]
  end
end
