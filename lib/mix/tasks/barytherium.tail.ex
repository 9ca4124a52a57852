defmodule Mix.Tasks.Barytherium.Tail do
  @shortdoc "Shows the messages of a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.tail",
               Barytherium.Tail.Help
             )
  use Mix.Task

  @impl true
  def run(argv), do: Barytherium.MixTask.run(Barytherium.Tail, argv, "mix barytherium.tail")
end
