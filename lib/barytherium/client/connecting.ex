defmodule Barytherium.Client.Connecting do
  @moduledoc false
  # How a client begins to connect. The functions run in the client, and take its data.

  alias Barytherium.Client.Events
  alias Barytherium.Frame
  alias Barytherium.Network.Sender

  @doc "Begins with the first broker, or a random one."
  @spec new_round(map()) :: map()
  def new_round(%{settings: settings} = data) do
    round = if settings.shuffle, do: Enum.shuffle(settings.endpoints), else: settings.endpoints
    %{data | round: round, refused: false}
  end

  @doc """
  Writes CONNECT, in a process of its own, because a function that fetches a password may take long or
  raise.
  """
  @spec greet(pid(), map()) :: pid()
  def greet(sender, %{settings: settings, endpoint: endpoint}) do
    client = self()

    spawn(fn ->
      try do
        headers = settings.connect_headers.(endpoint)
        Sender.write(sender, [%Frame{command: :connect, headers: headers}])
      catch
        kind, reason ->
          Events.no_credentials(kind, reason)
          :gen_statem.cast(client, {:greeting_failed, sender})
      end
    end)
  end

  @spec stop_greeter(map()) :: :ok | true
  def stop_greeter(%{greeter: nil}), do: :ok
  def stop_greeter(%{greeter: greeter}), do: Process.exit(greeter, :kill)
end
