defmodule DarwinFeed.MixProject do
  use Mix.Project

  def project do
    [
      app: :darwin_feed,
      version: "0.1.0",
      elixir: "~> 1.14",
      deps: [{:barytherium, path: "../.."}]
    ]
  end

  def application do
    [mod: {DarwinFeed.Application, []}, extra_applications: [:logger, :xmerl]]
  end
end
