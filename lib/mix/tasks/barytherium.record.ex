defmodule Mix.Tasks.Barytherium.Record do
  @shortdoc "Records the messages of a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.record",
               Barytherium.Record.Help
             )
  use Mix.Task

  @impl true
  def run(argv), do: Barytherium.MixTask.run(Barytherium.Record, argv, "mix barytherium.record")
end
