# SPDX-License-Identifier: Apache-2.0
# Makes a virtual environment with the ROS 2 wheels an ament prefix. `make setup` copies this into .venv as
# local_setup.sh, where .venv/bin/activate and colcon's install/setup.* read it. POSIX sh, also read by bash and zsh.

_ros_wheels_prefix="${COLCON_CURRENT_PREFIX:-$VIRTUAL_ENV}"

for _ros_wheels_variable in AMENT_PREFIX_PATH CMAKE_PREFIX_PATH; do
  eval "_ros_wheels_value=\"\${$_ros_wheels_variable:-}\""
  case ":$_ros_wheels_value:" in
    *":$_ros_wheels_prefix:"*) ;;
    *) export "$_ros_wheels_variable=$_ros_wheels_prefix${_ros_wheels_value:+:$_ros_wheels_value}" ;;
  esac
done

# Fast DDS loses large images with its defaults. A profile that is already chosen stays.
_ros_wheels_profile="$(dirname "$_ros_wheels_prefix")/config/fastdds_large_images.xml"
if [ -z "${FASTRTPS_DEFAULT_PROFILES_FILE:-}" ] && [ -f "$_ros_wheels_profile" ]; then
  export FASTRTPS_DEFAULT_PROFILES_FILE="$_ros_wheels_profile"
fi

unset _ros_wheels_prefix _ros_wheels_profile _ros_wheels_value _ros_wheels_variable
