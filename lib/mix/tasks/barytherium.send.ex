defmodule Mix.Tasks.Barytherium.Send do
  @shortdoc "Sends messages to a STOMP broker"
  @moduledoc Barytherium.Tail.CommandLine.documentation(
               "mix barytherium.send",
               Barytherium.Send.Help
             )
  use Mix.Task

  @impl true
  def run(argv), do: Barytherium.MixTask.run(Barytherium.Send, argv, "mix barytherium.send")
end
