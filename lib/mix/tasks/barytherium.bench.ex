defmodule Mix.Tasks.Barytherium.Bench do
  @shortdoc "Measures a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.bench",
               Barytherium.Bench.Help
             )
  use Mix.Task

  @impl true
  def run(argv), do: Barytherium.MixTask.run(Barytherium.Bench, argv, "mix barytherium.bench")
end
