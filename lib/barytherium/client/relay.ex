defmodule Barytherium.Client.Relay do
  @moduledoc false
  # Sends messages on to a subscriber on another node, which native code cannot reach. If that node does not
  # read, only this process waits.
  use GenServer, restart: :temporary

  alias Barytherium.Secret

  @doc "Starts it for the calling client."
  @spec start(pid()) :: pid()
  def start(subscriber) do
    {:ok, pid} = GenServer.start(__MODULE__, {self(), subscriber})
    pid
  end

  @doc "It ends after everything that came before."
  @spec stop(pid()) :: :ok
  def stop(pid), do: GenServer.cast(pid, :stop)

  @impl true
  def init({client, subscriber}) do
    Process.monitor(client)
    Process.monitor(subscriber)
    {:ok, subscriber}
  end

  @impl true
  def handle_info({:barytherium, :messages, _messages} = message, subscriber) do
    send(subscriber, message)
    {:noreply, subscriber}
  end

  def handle_info({:DOWN, _monitor, :process, _pid, _reason}, subscriber),
    do: {:stop, :normal, subscriber}

  def handle_info(_stray, subscriber), do: {:noreply, subscriber}

  @impl true
  def handle_call(_stray, _from, subscriber), do: {:reply, {:error, :unknown_call}, subscriber}

  @impl true
  def handle_cast(:stop, subscriber), do: {:stop, :normal, subscriber}
  def handle_cast(_stray, subscriber), do: {:noreply, subscriber}

  @doc false
  # The message may hold bodies.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  defdelegate format_status(status), to: Secret, as: :without_messages
end
