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
    %{data | round: round}
  end

  @doc """
  Fetches the credentials, in a process of its own, because that may take long or raise. The client gets
  `{:greeter, pid, :ready | :failed}`. The process keeps them until `greet/2`.
  """
  @spec start_greeter(map()) :: pid()
  def start_greeter(%{settings: settings, endpoint: endpoint}) do
    client = self()
    greeter = spawn(fn -> fetch(client, fn -> settings.connect_headers.(endpoint) end) end)
    Process.send_after(self(), {:credentials_timeout, greeter}, settings.credentials_timeout)
    greeter
  end

  defp fetch(client, headers) do
    # It ends with the client.
    monitor = Process.monitor(client)
    {frame, _cost} = Frame.prepare(%Frame{command: :connect, headers: headers.()})
    :gen_statem.cast(client, {:greeter, self(), :ready})

    receive do
      {:greet, sender} -> Sender.write(sender, [frame])
      {:DOWN, ^monitor, :process, ^client, _reason} -> :ok
    end
  catch
    kind, reason ->
      Events.no_credentials(kind, reason)
      :gen_statem.cast(client, {:greeter, self(), :failed})
  end

  @doc "Writes CONNECT."
  @spec greet(pid(), map()) :: term()
  def greet(sender, %{greeter: greeter}), do: send(greeter, {:greet, sender})

  @spec stop_greeter(map()) :: :ok | true
  def stop_greeter(%{greeter: nil}), do: :ok
  def stop_greeter(%{greeter: greeter}), do: Process.exit(greeter, :kill)
end
