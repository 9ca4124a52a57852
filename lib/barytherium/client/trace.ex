defmodule Barytherium.Client.Trace do
  @moduledoc false
  # Copies of all frames of a client go to a process (`Barytherium.Client.trace/2`): of what is received from the receive
  # loop, and of what is written from the sender. The functions run in the client, and take and return its data.
  #
  # For telemetry, the process is one of this module.
  use GenServer, restart: :temporary

  alias Barytherium.Client.State
  alias Barytherium.{Native, Secret, Telemetry}
  alias Barytherium.Network.Sender

  @typedoc "Who gets the copies, its monitor, and whether it is a process of this module."
  @type tap :: nil | {pid(), reference(), boolean()}

  @spec set(nil | :telemetry | pid(), State.t()) :: State.t()
  def set(to, %{tap: former} = data) do
    with {pid, monitor, ours?} <- former do
      Process.demonitor(monitor, [:flush])
      if ours?, do: GenServer.cast(pid, :stop)
    end

    apply_to_connection(%{data | tap: tap(to)})
  end

  defp tap(nil), do: nil

  defp tap(:telemetry) do
    {:ok, pid} = GenServer.start(__MODULE__, self())
    {pid, monitor(pid), true}
  end

  defp tap(pid), do: {pid, monitor(pid), false}

  defp monitor(pid), do: :erlang.monitor(:process, pid, tag: :tap)

  @doc "Has the connection send its copies, as far as it is there."
  @spec apply_to_connection(State.t()) :: State.t()
  def apply_to_connection(%{connection: nil} = data), do: data

  def apply_to_connection(%{connection: %{routes: routes, sender: sender}, tap: tap} = data) do
    pid = with {pid, _monitor, _ours?} <- tap, do: pid
    if routes, do: Native.set_tap(routes, pid)
    if sender, do: Sender.set_tap(sender, pid)
    data
  end

  @impl true
  def init(client) do
    Process.monitor(client)
    {:ok, client}
  end

  @impl true
  def handle_info({:barytherium, :trace, {direction, frames, _connection}}, client) do
    Telemetry.trace(client, direction, frames)
    {:noreply, client}
  end

  def handle_info({:DOWN, _monitor, :process, _client, _reason}, client),
    do: {:stop, :normal, client}

  def handle_info(_stray, client), do: {:noreply, client}

  @impl true
  def handle_cast(:stop, client), do: {:stop, :normal, client}
  def handle_cast(_stray, client), do: {:noreply, client}

  @impl true
  def handle_call(_stray, _from, client), do: {:reply, {:error, :unknown_call}, client}

  @doc false
  # The message may hold bodies.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  defdelegate format_status(status), to: Secret, as: :without_messages
end
